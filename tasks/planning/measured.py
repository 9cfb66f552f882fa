"""What a stage that has begun says of its own speed and size: receipts of a dump, checkpoints of a training.

Reads a sample, so that it takes as long for 10^9 tokens as for 10^6.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.manifest import MAIN_SHARD, ShardReceipt
from tasks.artifacts.store import ObjectInfo

SAMPLE = 24
"""Receipts that are read: each has a histogram of 1000 numbers."""
_PRIOR = "prior"


@dataclass(frozen=True)
class DumpProgress:
    """From the receipts of an unfinished dump."""

    shards: int
    """That are finished."""
    tokens: float
    """In them."""
    bytes_per_token: float
    entries: float
    """A position's, on average; 0 where the receipts do not say."""
    tokens_per_second: float | None
    """Of all workers together; None before three shards are there."""


@dataclass(frozen=True)
class TrainingProgress:
    """From the newest checkpoint of an unfinished training, and its log of the speed."""

    step: int
    tokens: float
    tokens_per_second: float | None


def dump_progress(artifact: Artifact) -> DumpProgress | None:
    """None before the first shard."""
    entries = [
        entry
        for entry in artifact.store.list(artifact.path("shards"))
        if entry.path.rpartition("/")[2] not in {f"{_PRIOR}.json", f"{MAIN_SHARD}.json"}
    ]
    if not entries:
        return None
    step = max(1, len(entries) // SAMPLE)
    receipts = [ShardReceipt.model_validate_json(artifact.store.get(entry.path)) for entry in entries[::step][:SAMPLE]]
    tokens = sum(float(receipt.metrics["tokens"]) for receipt in receipts)
    size = sum(record.size for receipt in receipts for record in receipt.objects)
    kept = sum(float(receipt.metrics.get("entries", 0)) for receipt in receipts)
    positions = sum(float(receipt.metrics.get("positions", 0)) for receipt in receipts)
    per_shard = tokens / len(receipts)
    gap = _gap(entries)
    return DumpProgress(
        shards=len(entries),
        tokens=per_shard * len(entries),
        bytes_per_token=size / tokens if tokens else 0.0,
        entries=kept / positions if positions else 0.0,
        tokens_per_second=per_shard / gap if gap else None,
    )


def _gap(entries: list[ObjectInfo]) -> float | None:
    """Seconds from one receipt to the next, on average. Pauses between launches are left out: gaps over 100 times the
    average of the others, which no number of workers that finish together comes to."""
    times = sorted(entry.modified for entry in entries)
    gaps = sorted(later - earlier for earlier, later in pairwise(times))
    while len(gaps) > 2 and gaps[-1] > 100 * statistics.fmean(gaps[:-1]) > 0:
        gaps.pop()
    return statistics.fmean(gaps) if len(gaps) >= 2 else None


def training_progress(artifact: Artifact) -> TrainingProgress | None:
    """None before the first checkpoint."""
    lists = [entry for entry in artifact.store.list(artifact.path("checkpoints")) if _is_list(entry.path)]
    if not lists:
        return None
    newest = max(lists, key=lambda entry: int(entry.path.rpartition("step-")[2].partition("-")[0]))
    record: dict[str, Any] = json.loads(artifact.store.get(newest.path))
    state = record["state"].get("training", {})
    return TrainingProgress(
        step=int(record["step"]),
        tokens=float(state.get("tokens", 0)),
        tokens_per_second=_logged_speed(artifact),
    )


def _is_list(path: str) -> bool:
    folder, _, name = path.rpartition("/")
    return folder.endswith("/checkpoints") and name.startswith("step-") and name.endswith(".json")


def _logged_speed(artifact: Artifact) -> float | None:
    logs = [entry for entry in artifact.store.list(artifact.path("logs")) if entry.path.endswith("performance.jsonl")]
    if not logs:
        return None
    newest = max(logs, key=lambda entry: entry.modified)
    speeds = [
        float(line["tokens_per_second"])
        for text in artifact.store.get(newest.path).decode().splitlines()
        if "tokens_per_second" in (line := json.loads(text))
    ]
    return statistics.median(speeds) if speeds else None
