"""What an artifact of the stage evolve holds."""

from __future__ import annotations

import json
from typing import Any

from tasks.artifacts.artifact import Artifact


def read(artifact: Artifact, name: str) -> str:
    manifest = artifact.manifest()
    assert manifest is not None
    entry = manifest.object(name)
    assert entry is not None
    return artifact.store.get(artifact.path(entry.path)).decode()


def rows_of(artifact: Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read(artifact, "instructions.jsonl").splitlines()]


def counts_of(artifact: Artifact) -> dict[str, Any]:
    counts: dict[str, Any] = json.loads(read(artifact, "evolve.json"))
    return counts


def digest_of(artifact: Artifact) -> str:
    manifest = artifact.manifest()
    assert manifest is not None
    return manifest.digest


def metrics_of(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest()
    assert manifest is not None
    return manifest.metrics
