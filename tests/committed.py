"""What a committed artifact holds, for tests."""

from __future__ import annotations

import re
from typing import Any

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.manifest import Manifest


def manifest_of(artifact: Artifact) -> Manifest:
    manifest = artifact.manifest()
    assert manifest is not None, f"{artifact.uri} is not finished"
    return manifest


def objects_of(artifact: Artifact) -> dict[str, bytes]:
    """The bytes of each object by its logical name."""
    return {entry.name: artifact.store.get(artifact.path(entry.path)) for entry in manifest_of(artifact).objects}


def read(artifact: Artifact, name: str) -> bytes:
    """The bytes of the object with this logical name."""
    entry = manifest_of(artifact).object(name)
    assert entry is not None, f"{artifact.uri} has no {name}"
    return artifact.store.get(artifact.path(entry.path))


def resumed_after(artifact: Artifact) -> list[int]:
    """The steps after which its launches said that they go on."""
    logs = [artifact.store.get(entry.path) for entry in artifact.store.list(artifact.path("logs"))]
    return [int(step) for log in logs for step in re.findall(rb"goes on after step (\d+) of", log)]


def digest_of(artifact: Artifact) -> str:
    return manifest_of(artifact).digest


def metrics_of(artifact: Artifact) -> dict[str, Any]:
    return manifest_of(artifact).metrics
