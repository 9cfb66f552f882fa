"""What surrounds a run: the store is proven, the run is recorded, its workers end when it does."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from threading import Event, Semaphore
from typing import Any
from uuid import UUID

import httpx
from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, State

from flows.cancelling import heeding_cancellation
from flows.profiles import Profile
from flows.room import require_room
from flows.terminal import Terminal, outlive_the_terminal
from tasks.artifacts.errors import InterruptedRunError, MediusError, StoreError
from tasks.artifacts.probe import require_conditional_writes
from tasks.artifacts.process_identity import own_process
from tasks.artifacts.runs import WHOLE, RunKind, RunRecord, RunStep, require_ended, write_run
from tasks.artifacts.store import Store, open_store
from tasks.artifacts.timestamp import timestamp
from tasks.runtime.declare import Step
from tasks.runtime.execute import RunContext
from tasks.runtime.launch_folder import SCRATCH

STOP = Event()
"""Set by the command line on the first Ctrl-C, and by `open_run` when the flow is cancelled or fails; also where the
server alone says that it is cancelled."""
_TOLD_SECONDS = 30.0
"""So long is waited for the server to hear how task runs ended."""
_TOLD_LOOK_SECONDS = 0.5


@contextmanager
def open_run(
    profile: Profile,
    steps: Sequence[Step],
    *,
    kind: RunKind = WHOLE,
    unjudged: Iterable[Step] = (),
    here: Sequence[Step] | None = None,
) -> Iterator[RunContext]:
    """Opens the profile's store and yields what the steps of this run share.

    Args:
        kind: how it differs from a run of the whole profile; its record says so.
        unjudged: as RunContext has it.
        here: those of the steps that this process makes; None: all.

    Raises:
        BadInputError: what it makes would not fit on a disk, or another process is at this run.
        StoreError: the store is away, or does not do what a store must.
        CancelledOnServerError: it was cancelled on the server, with no worker to tell it.
    """
    outlive_the_terminal()
    store = open_store(profile.store)
    require_conditional_writes(store)
    if profile.require_room:
        require_room(steps, steps if here is None else here, store, profile.parallel_stages, SCRATCH.resolve())
    identity = runtime.flow_run.get_id() or uuid.uuid4().hex
    require_ended(store, identity)
    record = RunRecord(
        run=identity,
        profile=profile.name,
        config=profile.model_dump(mode="json"),
        steps=tuple(
            RunStep(label=step.label, stage=step.stage.name, key=step.key, directory=step.directory) for step in steps
        ),
        kind=kind,
        process=own_process(),
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
        unjudged=frozenset(step.key for step in unjudged),
    )
    with heeding_cancellation(STOP):
        try:
            with terminal:
                yield context
        except BaseException as error:
            # A cancelled flow leaves this block while its task threads still wait for their workers.
            STOP.set()
            interrupted = not isinstance(error, Exception) or isinstance(error, InterruptedRunError)
            state = "interrupted" if interrupted else "failed"
            _write_end(store, record.model_copy(update={"state": state, "message": str(error).partition("\n")[0]}))
            raise
        _write_end(store, record.model_copy(update={"state": "finished"}))


def _write_end(store: Store, record: RunRecord) -> None:
    """Writes how a run ended. Where the store does not take it, how it ended still counts."""
    try:
        write_run(store, record.model_copy(update={"ended": timestamp()}))
    except StoreError as error:
        logging.getLogger(__name__).warning("the end of the run could not be recorded: %s", error)


def gather(futures: Iterable[Any]) -> list[Any]:
    """Results of all futures, after every one of them has ended; a flow that skips this would end Completed.

    Raises:
        MediusError: the first failure that is a cause, not a consequence of another stage's.
        Exception: there is none, but Prefect could not begin a task run, or not tell its server of it.
    """
    futures = list(futures)
    errors: list[Exception] = []
    ended = []
    for future in futures:
        try:
            future.wait()
        except Exception as error:
            errors.append(error)
        else:
            ended.append(future)
    for future in ended:
        if future.state.is_failed() or future.state.is_crashed():
            try:
                future.result()
            except Exception as error:
                errors.append(error)
    if errors:
        # A server that could not be told of a task run need not be waited for once more.
        if not any(isinstance(error, httpx.HTTPError) for error in errors):
            _close_unbegun({future.task_run_id: future.state for future in ended if future.state.is_pending()})
        raise min(errors, key=_consequence)
    return [future.result() for future in futures]


def _close_unbegun(task_runs: Mapping[UUID, State[Any]]) -> None:
    """Prefect leaves what waited for a failed task pending, as if it were still about to begin.

    As far as the server can be reached. It hears of a task run, its name included, some time after the fact, and would
    take no such news of one whose state is newer: so its last word is awaited first.
    """
    closed: State[Any] = Cancelled(message="not begun: a stage before it did not come to its end")
    deadline = time.monotonic() + _TOLD_SECONDS
    with suppress(httpx.HTTPError), get_client(sync_client=True) as client:
        for task_run, last in task_runs.items():
            while not _has_heard(client, task_run, last):
                if time.monotonic() > deadline:
                    return
                time.sleep(_TOLD_LOOK_SECONDS)
            client.set_task_run_state(task_run, closed, force=True)


def _has_heard(client: SyncPrefectClient, task_run: UUID, last: State[Any]) -> bool:
    try:
        state = client.read_task_run(task_run).state
    except ObjectNotFound:
        return False
    return state is not None and state.name == last.name


def _consequence(error: Exception) -> int:
    # An interruption is told last: the stage that failed first may be the reason why the others were stopped.
    return 2 if isinstance(error, InterruptedRunError) else 0 if isinstance(error, MediusError) else 1
