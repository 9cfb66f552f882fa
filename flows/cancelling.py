"""A run that looks at its own state, so that cancelling it needs no worker of Prefect.

A worker stops the runs that it started itself; one that was started again knows none of those before it. The server
calls such a run Cancelled after 300 s and gives its place away, while its stages would work on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any
from uuid import UUID

import httpx
from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.exceptions import Abort
from prefect.states import Cancelled, State

from flows.prefect_api import PrefectApi
from flows.prefect_settings import find_server
from tasks.artifacts.errors import InterruptedRunError, MediusError

_POLL_SECONDS = 10.0
_ASKED = {"CANCELLING", "CANCELLED"}


class CancelledOnServerError(Abort):
    """Ends a flow whose state the server has already: Prefect proposes no other then, such as Failed."""

    def __init__(self, message: str, state: State[Any]) -> None:
        super().__init__(message)
        self.state = state
        """In which Prefect says that the run has finished."""


class CancelWatch:
    """A thread that sets `stop` when the server says of a run that it is to be cancelled, or was."""

    def __init__(self, api: PrefectApi, run: str, stop: Event, poll_seconds: float = _POLL_SECONDS) -> None:
        self.asked = False
        """Whether the server said so."""
        self._api = api
        self._run = run
        self._stop = stop
        self._poll_seconds = poll_seconds
        self._over = Event()
        self._thread = Thread(target=self._watch, name="cancelling", daemon=True)

    def start(self) -> None:
        """Begins to look; the first look comes after a pause."""
        self._thread.start()

    def end(self) -> None:
        """Looks no more. A look that is under way may take as long as the server does, and is not waited for."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(self._poll_seconds):
            try:
                found = self._api.post("/flow_runs/filter", {"flow_runs": {"id": {"any_": [self._run]}}})
            except MediusError:
                # A server that is away says nothing of the run.
                continue
            if any(run["state_type"] in _ASKED for run in found) and not self._over.is_set():
                self.asked = True
                self._stop.set()
                return


@contextmanager
def heeding_cancellation(stop: Event, poll_seconds: float = _POLL_SECONDS) -> Iterator[None]:
    """Around a run. One that a worker of Prefect started has `stop` set when it is cancelled, and then ends as
    cancelled; any other is left alone, as whoever started it can stop it.

    Raises:
        CancelledOnServerError: the block failed after it was cancelled; what it failed with is the cause.
    """
    server = find_server()
    if not runtime.deployment.id or server is None:
        yield
        return
    run = str(runtime.flow_run.id)
    watch = CancelWatch(server, run, stop, poll_seconds)
    watch.start()
    try:
        yield
    except Exception as error:
        # One that waits for an approval sees the same, and may be the first.
        if watch.asked or isinstance(error, InterruptedRunError):
            state = _end_as_cancelled(UUID(run), error)
            if state is not None and (watch.asked or state.is_cancelled()):
                raise CancelledOnServerError("the run was cancelled", state) from error
        raise
    finally:
        watch.end()


def _end_as_cancelled(run: UUID, error: Exception) -> State[Any] | None:
    """Tells the server of a run's end; the state that it has then, None where the server is away."""
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(run).state
            # One that the server gave up and somebody retried is at work elsewhere, under the same id.
            if state is not None and state.is_cancelling():
                said = str(error).partition("\n")[0]
                told: State[Any] = Cancelled(message=f"The run was cancelled: {said}")
                state = client.set_flow_run_state(run, told).state or state
            return state
    except httpx.HTTPError as away:
        logging.getLogger(__name__).warning("the server could not be told that the run is cancelled: %s", away)
        return None
