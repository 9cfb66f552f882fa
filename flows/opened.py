"""What surrounds a run: the store is proven, the run is recorded, its workers end when it does."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Semaphore
from typing import Any

from prefect import runtime

from flows.profiles import Profile
from flows.terminal import Terminal
from tasks.artifacts.errors import InterruptedRunError, MediusError
from tasks.artifacts.probe import require_conditional_writes
from tasks.artifacts.runs import RunRecord, RunStep, write_run
from tasks.artifacts.store import open_store
from tasks.runtime.declare import Step
from tasks.runtime.execute import RunContext
from tasks.runtime.provenance import timestamp

SCRATCH = Path(".medius/scratch")

STOP = Event()
"""Set by the command line on the first Ctrl-C, and by `open_run` when the flow is cancelled or fails."""


@contextmanager
def open_run(profile: Profile, steps: Sequence[Step]) -> Iterator[RunContext]:
    """Opens the profile's store and yields what the steps of this run share."""
    store = open_store(profile.store)
    require_conditional_writes(store)
    identity = runtime.flow_run.get_id() or uuid.uuid4().hex
    record = RunRecord(
        run=identity,
        profile=profile.name,
        config=profile.model_dump(mode="json"),
        steps=tuple(
            RunStep(label=step.label, stage=step.stage.name, key=step.key, directory=step.directory) for step in steps
        ),
        started=timestamp(),
    )
    write_run(store, record)
    terminal = Terminal()
    context = RunContext(
        store=store,
        scratch=SCRATCH.resolve(),
        flow_run=identity,
        stop=STOP,
        watch=terminal.watch,
        slots=Semaphore(profile.parallel_stages),
    )
    try:
        with terminal:
            yield context
    except BaseException as error:
        # A cancelled flow leaves this block while its task threads still wait for their workers.
        STOP.set()
        interrupted = not isinstance(error, Exception) or isinstance(error, InterruptedRunError)
        state = "interrupted" if interrupted else "failed"
        write_run(
            store,
            record.model_copy(update={"state": state, "ended": timestamp(), "message": str(error).partition("\n")[0]}),
        )
        raise
    write_run(store, record.model_copy(update={"state": "finished", "ended": timestamp()}))


def gather(futures: Iterable[Any]) -> list[Any]:
    """Results of all futures, after every one of them has ended; a flow that skips this would end Completed.

    Raises:
        MediusError: the first failure that is a cause, not a consequence of another stage's.
    """
    futures = list(futures)
    for future in futures:
        future.wait()
    errors = []
    for future in futures:
        if future.state.is_failed() or future.state.is_crashed():
            try:
                future.result()
            except MediusError as error:
                errors.append(error)
    # An interruption is told last: the stage that failed first may be the reason why the others were stopped.
    errors.sort(key=lambda error: isinstance(error, InterruptedRunError))
    if errors:
        raise errors[0]
    return [future.result() for future in futures]
