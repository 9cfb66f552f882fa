"""What an artifact of the stage evolve holds."""

from __future__ import annotations

import json
from typing import Any

from tasks.artifacts.artifact import Artifact
from tests.committed import read


def rows_of(artifact: Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read(artifact, "instructions.jsonl").splitlines()]


def counts_of(artifact: Artifact) -> dict[str, Any]:
    counts: dict[str, Any] = json.loads(read(artifact, "evolve.json"))
    return counts
