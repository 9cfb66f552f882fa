"""The wait of a deployment's run for somebody's word: its flow run is paused until that is resumed or cancelled.

The run's process stays and looks at the server every few seconds, so that the stages beside the one that is asked about
go on. One question stands at a time. A pause outlives a restart of the server, but not the run's process, which alone
writes down what was answered: without it the run is marked as crashed (dead_runs.py), and a retry asks again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from threading import Event, Lock
from typing import Any
from uuid import UUID

import httpx
from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.responses import SetStateStatus
from prefect.logging import get_run_logger
from prefect.states import Paused, Running, State

from flows.approval import Approvals, Expensive
from flows.approval_rule import PAUSE_KEY
from flows.profiles import Profile
from tasks.artifacts.errors import InterruptedRunError, MediusError, WorkerInterruptedError
from tasks.planning.quantities import HOUR
from tasks.runtime.declare import Step
from tasks.runtime.execute import RunContext

_POLL_SECONDS = 5.0
_AFTER_US_SECONDS = 600
"""So much later than the run itself the server would end a pause: it calls the run failed while stages still run."""


class PauseForApproval:
    """To be called in the task of a step, before anything of it is started."""

    def __init__(self, approvals: Approvals, stop: Event, poll_seconds: float = _POLL_SECONDS) -> None:
        """`stop` is set where the run is to end."""
        self._approvals = approvals
        self._stop = stop
        self._poll_seconds = poll_seconds
        self._one_question = Lock()
        self._unanswered: str | None = None
        """Why nothing is asked any more: the run only waits for the stages beside."""

    def __call__(self, step: Step) -> None:
        """Returns when the step may begin.

        Raises:
            InterruptedRunError: it may not: the run was cancelled, or nobody answered in time.
            WorkerInterruptedError: the server could not be asked; worth a retry.
        """
        while not self._one_question.acquire(timeout=self._poll_seconds):
            self._raise_if_stopped(step)
        try:
            self._raise_if_stopped(step)
            stage = self._approvals.of(step)
            if stage is not None and self._unanswered is not None:
                raise self._ended(step, self._unanswered)
            if stage is not None:
                self._wait(stage)
                self._approvals.give([stage], f"resuming flow run {runtime.flow_run.id}")
        finally:
            self._one_question.release()

    def _wait(self, stage: Expensive) -> None:
        run, wait_hours = UUID(str(runtime.flow_run.id)), self._approvals.rule.wait_hours
        said = (
            f'{stage.said}: over the profile\'s `approval`. Resume the run (here, or "medius approve {run}") and the '
            f"stage begins; cancel it and nothing more does. What runs beside it goes on; without an answer in "
            f"{wait_hours:g} h the run ends after that, and a retry asks again."
        )
        get_run_logger().warning("%s", said)
        deadline = time.monotonic() + wait_hours * HOUR
        # The server refuses a name that it has had; a retry of the run asks under another.
        key = f"{PAUSE_KEY}{stage.step.key[:16]}-{runtime.flow_run.run_count}-{runtime.task_run.run_count}"
        timeout = int(wait_hours * HOUR) + _AFTER_US_SECONDS
        paused: State[Any] = Paused(message=said, timeout_seconds=timeout, pause_key=key)
        with get_client(sync_client=True) as client:
            self._pause(client, run, paused, stage.step)
            while not self._stop.wait(self._poll_seconds):
                state = _state(client, run)
                if state is None:
                    continue
                if state.is_paused():
                    # Running, as the stages beside are: a run that has ended can be retried, which would be a second
                    # one beside them.
                    unanswered = f"nobody approved it within {wait_hours:g} h"
                    if time.monotonic() >= deadline and _set(client, run, Running(message=unanswered)):
                        self._unanswered = f"{stage.step.label} was asked about before, and {unanswered}"
                        raise self._ended(stage.step, unanswered)
                elif state.is_running():
                    get_run_logger().info("%s may begin", stage.step.label)
                    return
                else:
                    raise self._ended(stage.step, f"the run is {state.name}")
        self._raise_if_stopped(stage.step)

    def _pause(self, client: SyncPrefectClient, run: UUID, paused: State[Any], step: Step) -> None:
        try:
            answer = client.set_flow_run_state(run, paused)
        except httpx.HTTPError as error:
            raise WorkerInterruptedError(
                f"{step.label}: the Prefect server did not take the question whether it may begin ({error}); a retry "
                f"asks again"
            ) from error
        if answer.status != SetStateStatus.ACCEPT:
            reason = getattr(answer.details, "reason", None) or "it gave no reason"
            raise self._ended(step, f"the server does not let the run wait for an answer ({reason})")

    def _raise_if_stopped(self, step: Step) -> None:
        if self._stop.is_set():
            raise self._ended(step, "the run was stopped")

    def _ended(self, step: Step, why: str) -> MediusError:
        return InterruptedRunError(
            f"{step.label} was not begun, as it needs an approval and {why}; what is finished is kept, and a retry or "
            f"a new run with the same parameters asks again"
        )


def _state(client: SyncPrefectClient, run: UUID) -> State[Any] | None:
    """The run's state; None where the server is away, which says nothing."""
    try:
        return client.read_flow_run(run).state
    except httpx.HTTPError:
        return None


def _set(client: SyncPrefectClient, run: UUID, state: State[Any]) -> bool:
    """Whether the server takes the state; False also where it is away."""
    try:
        return client.set_flow_run_state(run, state).status == SetStateStatus.ACCEPT
    except httpx.HTTPError:
        return False


def approval_of_deployment(
    profile: Profile,
    steps: Sequence[Step],
    context: RunContext,
    *,
    only: Step | None = None,
    approved: bool = False,
) -> Callable[[Step], None] | None:
    """What asks before a run's expensive steps; None where nobody is asked, or was before the run began.

    Args:
        only: the step that the run makes, if not all of them.
        approved: whether who started the run has said so already.

    Raises:
        BadInputError: the shape of a model is not known, so that nothing can be forecast.
    """
    if profile.approval is None or not runtime.deployment.id:
        return None
    approvals = Approvals(profile.approval, steps, context.store)
    # Also without that word: what cannot be forecast is said now, not after the first days.
    wanted = [stage for stage in approvals.wanted() if only is None or stage.step.key == only.key]
    if approved:
        approvals.give(wanted, f"options.approved of flow run {runtime.flow_run.id}")
        return None
    return PauseForApproval(approvals, context.stop)
