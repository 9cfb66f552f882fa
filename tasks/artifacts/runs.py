"""What a store remembers of runs: the resolved profile and the steps of each, and the last run of every profile.

runs/<run id>.json      written at the start, again at the end
refs/<profile>.json     the run that last used this profile; what it reaches is never garbage
"""

from __future__ import annotations

from typing import Any, Literal

from tasks.artifacts.artifact import encode_record
from tasks.artifacts.errors import ObjectMissingError
from tasks.artifacts.frozen import Frozen
from tasks.artifacts.store import Store


class RunStep(Frozen):
    """One step of a run, as its DAG named it."""

    label: str
    stage: str
    key: str
    directory: str


class RunRecord(Frozen):
    """One run of a profile."""

    record: int = 1
    run: str
    profile: str
    config: dict[str, Any]
    steps: tuple[RunStep, ...]
    started: str
    ended: str | None = None
    state: Literal["running", "finished", "failed", "interrupted"] = "running"
    message: str = ""


def write_run(store: Store, record: RunRecord) -> None:
    """Writes a run's record and points the profile's ref at it."""
    store.put(f"runs/{record.run}.json", encode_record(record))
    store.put(f"refs/{record.profile}.json", encode_record(record))


def last_run(store: Store, profile: str) -> RunRecord | None:
    """The run that last used a profile of this name."""
    try:
        return RunRecord.model_validate_json(store.get(f"refs/{profile}.json"))
    except ObjectMissingError:
        return None


def all_runs(store: Store) -> list[RunRecord]:
    """All runs, oldest first."""
    records = [RunRecord.model_validate_json(store.get(entry.path)) for entry in store.list("runs")]
    return sorted(records, key=lambda record: record.started)
