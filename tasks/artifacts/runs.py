"""What a store remembers of runs: the resolved profile, the steps and the process of each.

runs/<run id>.json      written at the start, again at the end
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import field_validator

from tasks.artifacts.artifact import decode_record, encode_record
from tasks.artifacts.errors import BadInputError, CorruptArtifactError, ObjectChangedError, ObjectMissingError
from tasks.artifacts.frozen import Frozen
from tasks.artifacts.process_identity import ProcessIdentity, own_process
from tasks.artifacts.store import Store
from tasks.artifacts.timestamp import timestamp

_CLOCK_SECONDS = 2.0
"""By so much an object's modification time may be before the moment of its write: some servers tell whole seconds."""


class RunStep(Frozen):
    """One step of a run, as its DAG named it."""

    label: str
    stage: str
    key: str
    directory: str


class RunKind(Frozen):
    """In what a run differs from one of the whole profile as its file says it."""

    smoke: bool = False
    until: str | None = None
    """The stage at which it was to end, or which alone it was to make."""
    overrides: tuple[str, ...] = ()
    """As of --set."""

    @property
    def group(self) -> tuple[bool, bool, bool]:
        """Runs of one group are alike enough for a later one to take the place of an earlier one."""
        return self.smoke, self.until is not None, bool(self.overrides)

    def __str__(self) -> str:
        until = [] if self.until is None else [f"until {self.until}"]
        return ", ".join([*(["smoke"] if self.smoke else []), *until, *(f"--set {text}" for text in self.overrides)])


WHOLE = RunKind()
"""A run of a whole profile as its file says it."""


class RunRecord(Frozen):
    """One run of a profile."""

    record: int = 2
    run: str
    profile: str
    config: dict[str, Any]
    steps: tuple[RunStep, ...]
    kind: RunKind = WHOLE
    process: ProcessIdentity | None = None
    """What ran it; None in records of version 1."""
    started: str
    ended: str | None = None
    state: Literal["running", "finished", "failed", "interrupted"] = "running"
    message: str = ""

    @field_validator("started", "ended")
    @classmethod
    def _is_a_moment(cls, text: str | None) -> str | None:
        if text is not None:
            datetime.fromisoformat(text)
        return text

    def is_dead(self) -> bool:
        """Whether it is known to have ended without saying so, as by kill -9."""
        return self.state == "running" and self.process is not None and self.process.is_gone()

    def may_run(self) -> bool:
        """Whether it says that it runs, and nothing is known against that."""
        return self.state == "running" and not self.is_dead()

    def describe(self) -> str:
        """One line for people."""
        kind = f" ({self.kind})" if str(self.kind) else ""
        state = "ended without a word" if self.is_dead() else self.state
        ended = f", ended {self.ended}" if self.ended else ""
        return f"run {self.run}{kind}: {state}, started {self.started}{ended} {self.message}".rstrip()

    def last_moment(self) -> datetime:
        """When it ended, or began where it has not."""
        moment = datetime.fromisoformat(self.ended or self.started)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def run_path(run: str) -> str:
    """Where a run's record is in its store."""
    return f"runs/{run}.json"


def write_run(store: Store, record: RunRecord) -> None:
    """Writes a run's record."""
    store.put(run_path(record.run), encode_record(record))


def all_runs(store: Store) -> list[RunRecord]:
    """All runs, oldest first. Raises CorruptArtifactError where a record cannot be read."""
    return sorted(_records(store, (entry.path for entry in store.list("runs"))), key=lambda record: record.started)


def runs_written_since(store: Store, moment: float) -> list[RunRecord]:
    """The runs that began or ended since then.

    Args:
        moment: by the store's clock, seconds since the epoch.
    """
    young = [entry.path for entry in store.list("runs") if entry.modified >= moment - _CLOCK_SECONDS]
    return list(_records(store, young))


def read_run(store: Store, run: str) -> RunRecord | None:
    """One run's record, if there is one. Raises CorruptArtifactError where it cannot be read."""
    return next(_records(store, [run_path(run)]), None)


def require_ended(store: Store, run: str) -> None:
    """Raises BadInputError where another process of this host still is at this very run, as may be where it is retried.

    Each would write the one record, and tell its server of the one end.
    """
    with suppress(CorruptArtifactError):
        record = read_run(store, run)
        process = None if record is None or record.state != "running" else record.process
        if process is not None and process.lives_here() and process != own_process():
            raise BadInputError(
                f"run {run} is still at work in process {process.process} of {process.host}, whatever the Prefect "
                f"server says of it; wait until that has ended, then retry it"
            )


def end_silent_run(store: Store, run: str, message: str) -> bool:
    """Writes of a run whose process is gone that it was interrupted; False unless its record says that it runs."""
    try:
        there = store.read(run_path(run))
    except ObjectMissingError:
        return False
    record = decode_record(RunRecord, there.data, store.locate(run_path(run)))
    lives = record.process is not None and record.process.lives_here()
    if record.state != "running" or lives:
        return False
    record = record.model_copy(update={"state": "interrupted", "ended": timestamp(), "message": message})
    try:
        store.replace(run_path(run), encode_record(record), there.etag)
    except ObjectChangedError:
        # A retry of it has begun.
        return False
    return True


def retained(runs: Sequence[RunRecord], since: datetime) -> list[RunRecord]:
    """The runs whose artifacts are kept.

    These are: of every profile and kind of run the last one and the last that finished, so that a --smoke, --set or
    --until run takes no place of the real one; those that began or ended since; and all that may be running.

    Args:
        runs: oldest first.
    """
    last = {(run.profile, run.kind.group): run.run for run in runs}
    finished = {(run.profile, run.kind.group): run.run for run in runs if run.state == "finished"}
    named = {*last.values(), *finished.values()}
    return [run for run in runs if run.run in named or run.may_run() or run.last_moment() >= since]


def _records(store: Store, paths: Iterable[str]) -> Iterator[RunRecord]:
    for path in paths:
        # One that is removed meanwhile is a run that nothing remembers.
        with suppress(ObjectMissingError):
            yield decode_record(RunRecord, store.get(path), store.locate(path))
