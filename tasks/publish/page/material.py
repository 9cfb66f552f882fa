"""What the page is made of, read from a store: each stage's state, manifest, gates, logs and records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.checkpoint import checkpoint_attempts
from tasks.artifacts.errors import ObjectMissingError
from tasks.artifacts.fingerprint import sha256_hex
from tasks.artifacts.manifest import MAIN_SHARD, Manifest
from tasks.artifacts.store import Store
from tasks.runtime.gates import acceptance_reason, read_verdict
from tasks.runtime.state import LOOKS, StepState

RESULTS = "results.json"
TRAINING_LOG = "training_log.jsonl"
SURGERY_RECORD = "surgery.json"
MAX_RECEIPTS = 256
"""Read of one logit store: each is a request to the object storage."""


@dataclass(frozen=True)
class JudgedGate:
    """One gate of a finished stage. `accepted` is the reason why a failed one was passed over."""

    gate: str
    passed: bool
    value: float | None
    wanted: str
    meaning: str
    accepted: str | None = None


@dataclass(frozen=True)
class StageRecord:
    """One stage of the run, whatever its state. `inputs` holds labels by role; only stages of the run are in it."""

    label: str
    stage: str
    key: str
    directory: str
    state: str
    reason: str
    inputs: Mapping[str, str]
    manifest: Manifest | None = None
    gates: tuple[JudgedGate, ...] = ()
    launches_seen: int = 0
    """Launches that left objects, a log or a checkpoint; a killed one may leave none, and `medius gc` removes logs."""

    @property
    def num_bytes(self) -> int:
        """Of all objects that count; 0 before the stage is finished."""
        return sum(entry.size for entry in self.manifest.objects) if self.manifest else 0

    @property
    def seconds(self) -> float | None:
        """Of the launch that finished the stage; earlier launches of a resumed one are not in it."""
        return self.manifest.provenance.seconds if self.manifest else None

    @property
    def launches(self) -> int:
        """How many launches are known to have worked on a finished stage: by what they left, or by its calls."""
        if self.manifest is None:
            return 0
        resumed = bool(self.manifest.metrics.get("calls_of_earlier_launches"))
        return max(self.manifest.provenance.attempts, self.launches_seen, 1 + resumed)


def stage_records(states: Iterable[StepState], store: Store) -> list[StageRecord]:
    """The stages of a run in the order of `states`, each with its gates as last judged."""
    with ThreadPoolExecutor(LOOKS, thread_name_prefix="record") as pool:
        return list(pool.map(lambda state: _record(state, store), states))


def _record(state: StepState, store: Store) -> StageRecord:
    return StageRecord(
        label=state.step.label,
        stage=state.step.stage.name,
        key=state.step.key,
        directory=state.step.directory,
        state=state.state,
        reason=state.reason,
        inputs={role: source.label for role, source in state.step.inputs.items()},
        manifest=state.manifest,
        gates=judged_gates(store, state.step.directory) if state.manifest else (),
        launches_seen=_launches_seen(store, state.step.directory, state.manifest) if state.manifest else 0,
    )


def _launches_seen(store: Store, directory: str, manifest: Manifest) -> int:
    """By the attempts in data/<shard>-<attempt>/…, logs/worker-<attempt>.log and checkpoints/step-<N>-<attempt>/…"""
    seen = {entry.path.split("/")[1].rpartition("-")[2] for entry in manifest.objects}
    for name in store.children(f"{directory}/logs"):
        if name.startswith("worker-"):
            seen.add(name.rpartition("-")[2].split(".")[0])
    return len(seen | checkpoint_attempts(Artifact(store, directory)))


def judged_gates(store: Store, directory: str) -> tuple[JudgedGate, ...]:
    """The verdict beside an artifact, with what was accepted of it."""
    artifact = Artifact(store, directory)
    verdict = read_verdict(artifact)
    if verdict is None:
        return ()
    return tuple(
        JudgedGate(
            gate=entry.gate,
            passed=entry.passed,
            value=entry.value,
            wanted=f"{entry.comparison} {entry.threshold:g}",
            meaning=entry.meaning,
            accepted=None if entry.passed else acceptance_reason(artifact, entry.gate, verdict.digest),
        )
        for entry in verdict.gates
    )


def object_lines(store: Store, record: StageRecord, name: str) -> list[dict[str, Any]]:
    """The lines of a JSONL object of a finished stage; nothing if there is no such object."""
    data = _object(store, record, name)
    if data is None:
        return []
    return [json.loads(line) for line in data.decode().splitlines() if line.strip()]


def object_json(store: Store, record: StageRecord, name: str) -> dict[str, Any] | None:
    """A JSON object of a finished stage, by its logical name."""
    data = _object(store, record, name)
    if data is None:
        return None
    value: dict[str, Any] = json.loads(data)
    return value


def captured_histogram(store: Store, record: StageRecord) -> tuple[list[int], int, int]:
    """(positions by captured mass in equal bins from 0 to 1, shards read, shards with such numbers) of a logit store.

    At most MAX_RECEIPTS shards are read, at equal distances.
    """
    prefix = f"{record.directory}/shards"
    paths = [entry.path for entry in store.list(prefix) if not entry.path.endswith(f"/{MAIN_SHARD}.json")]
    step = max(1, -(-len(paths) // MAX_RECEIPTS))
    sums: list[int] = []
    num_read = 0
    for data in store.get_all(paths[::step]):
        bins = json.loads(data)["metrics"].get("captured_histogram")
        if bins:
            num_read += 1
            sums = [int(a) + int(b) for a, b in zip(sums or [0] * len(bins), bins, strict=True)]
    return sums, num_read, num_read if step == 1 else len(paths)


def of_stage(records: Sequence[StageRecord], *stages: str) -> list[StageRecord]:
    """The finished stages of these kinds."""
    return [record for record in records if record.stage in stages and record.manifest is not None]


def _object(store: Store, record: StageRecord, name: str) -> bytes | None:
    entry = record.manifest.object(name) if record.manifest is not None else None
    if entry is None:
        return None
    # A report of a damaged store still shows all the rest; `medius verify` names the damage.
    try:
        data = store.get(f"{record.directory}/{entry.path}")
    except ObjectMissingError:
        return None
    return data if sha256_hex(data) == entry.sha256 else None
