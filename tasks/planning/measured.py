"""What a stage that has begun says of its own speed and size: receipts of a dump, checkpoints of a training.

Reads a sample, so that it takes as long for 10^9 tokens as for 10^6.

A dump's speed is told from its newest receipts, launch by launch: from one launch to the next nobody may have worked.
A launch is known by the attempt in the paths of its objects, data/<shard>-[r<rank>-]<attempt>/…, its workers by the
rank.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.checkpoint import checkpoint_lists
from tasks.artifacts.manifest import MAIN_SHARD, ShardReceipt
from tasks.artifacts.store import ObjectInfo

SAMPLE = 24
"""Receipts that are read for sizes, from all over the dump: each has a histogram of 1000 numbers."""
NEWEST = 64
"""Receipts that are read for the speed: two of each of 32 workers that finish together."""
FEWEST = 3
"""Receipts of a launch whose speed counts."""
_PRIOR = "prior"
_Work = list[tuple[float, float]]
"""Of one worker: when each of its shards was finished, and its tokens."""


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
    """Of all workers together; None before a launch has made three shards, a worker two of them."""
    launches: int
    """That made this speed side by side; 0 where there is none."""


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
    receipts = _read(artifact, entries[::step][:SAMPLE])
    tokens = sum(float(receipt.metrics["tokens"]) for receipt in receipts)
    size = sum(record.size for receipt in receipts for record in receipt.objects)
    kept = sum(float(receipt.metrics.get("entries", 0)) for receipt in receipts)
    positions = sum(float(receipt.metrics.get("positions", 0)) for receipt in receipts)
    newest = sorted(entries, key=lambda entry: entry.modified)[-NEWEST:]
    rates = _rates(zip(newest, _read(artifact, newest), strict=True))
    return DumpProgress(
        shards=len(entries),
        tokens=tokens / len(receipts) * len(entries),
        bytes_per_token=size / tokens if tokens else 0.0,
        entries=kept / positions if positions else 0.0,
        tokens_per_second=sum(rates) if rates else None,
        launches=len(rates),
    )


def _read(artifact: Artifact, entries: Sequence[ObjectInfo]) -> list[ShardReceipt]:
    return list(map(ShardReceipt.model_validate_json, artifact.store.get_all([entry.path for entry in entries])))


def _rates(newest: Iterable[tuple[ObjectInfo, ShardReceipt]]) -> list[float]:
    """Tokens a second of the last launch whose speed is known, and of each at work beside it."""
    attempts: dict[str, dict[str, _Work]] = defaultdict(lambda: defaultdict(list))
    for entry, receipt in newest:
        writer = receipt.objects[0].path.split("/")[1].removeprefix(f"{receipt.shard}-")
        attempts[writer.rpartition("-")[2]][writer].append((entry.modified, float(receipt.metrics["tokens"])))
    # (tokens a second, first and last moment) of each launch.
    found = []
    for workers in attempts.values():
        times = [time for work in workers.values() for time, _ in work]
        rates = [rate for work in workers.values() if (rate := _rate(work)) is not None]
        if rates and len(times) >= FEWEST:
            found.append((statistics.fmean(rates) * len(workers), min(times), max(times)))
    if not found:
        return []
    _, begin, end = max(found, key=lambda launch: launch[2])
    return [rate for rate, first, last in found if first <= end and last >= begin]


def _rate(work: _Work) -> float | None:
    """Tokens a second of one worker, counted from its first receipt on."""
    seconds = work[-1][0] - work[0][0]
    return sum(tokens for _, tokens in work[1:]) / seconds if seconds > 0 else None


def training_progress(artifact: Artifact) -> TrainingProgress | None:
    """None before the first checkpoint."""
    lists = checkpoint_lists(artifact)
    if not lists:
        return None
    newest, _ = lists[0]
    record: dict[str, Any] = json.loads(artifact.store.get(newest))
    state = record["state"].get("training", {})
    return TrainingProgress(
        step=int(record["step"]),
        tokens=float(state.get("tokens", 0)),
        tokens_per_second=_logged_speed(artifact),
    )


def performance_lines(artifact: Artifact) -> list[dict[str, Any]]:
    """What the newest launch of a training logged of its speed, beside the artifact; nothing if it did not."""
    logs = [entry for entry in artifact.store.list(artifact.path("logs")) if entry.path.endswith("/performance.jsonl")]
    if not logs:
        return []
    newest = max(logs, key=lambda entry: entry.modified)
    return [json.loads(line) for line in artifact.store.get(newest.path).decode().splitlines() if line.strip()]


def _logged_speed(artifact: Artifact) -> float | None:
    lines = performance_lines(artifact)
    speeds = [float(line["tokens_per_second"]) for line in lines if "tokens_per_second" in line]
    return statistics.median(speeds) if speeds else None
