"""The single Prefect task: every stage of every recipe is this one, under its own name.

Prefect shows, retries and schedules. It is not the memory: no cache, no persisted result; what a task returns is a
reference of a few hundred bytes into the store, and a second run learns what is done from the store alone.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.states import Completed
from prefect.tasks import Task

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import GateFailedError, InterruptedRunError, MediusError
from tasks.artifacts.manifest import ArtifactRef
from tasks.runtime.dashboard import Dashboard, Logger, describe, show_failure, show_gates, shown
from tasks.runtime.declare import GateResult, Step
from tasks.runtime.execute import RunContext, execute
from tasks.runtime.log_redaction import without_credentials
from tasks.runtime.stage_events import StageEvents
from tasks.worker.spec import Event


def _worth_a_retry(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    try:
        state.result(raise_on_failure=True)
    except MediusError as error:
        return error.retryable
    except Exception:
        # `result` raises whatever the task raised. What no worker calls transient is a defect, and would fail again.
        return False
    return False


class StageRun:
    """A step with its context. Deliberately no dataclass: Prefect walks into those, and a step holds its whole DAG."""

    def __init__(self, step: Step, context: RunContext) -> None:
        self.step = step
        self.context = context


@task(cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=_worth_a_retry, log_prints=False)
def run_stage(stage_run: StageRun) -> Any:
    """Runs one step; returns its ArtifactRef, in a state named Reused where nothing had to be done, and Shared where
    another run has finished it meanwhile."""
    with without_credentials():
        return _run(stage_run.step, stage_run.context)


def _run(step: Step, context: RunContext) -> ArtifactRef | State[ArtifactRef]:
    logger = get_run_logger()
    logger.info("%s: key %s, %s", step.label, step.key[:16], context.store.locate(step.directory))
    dashboard, events = Dashboard(step, logger), StageEvents(step)
    watch = context.watch

    def both(of: Step, event: Event) -> None:
        # After a progress the feed would wait for the next, and a run that is cancelled may not be there to end that.
        silent = event.kind == "progress" and context.stop.is_set()
        watch(of, event)
        if not silent:
            dashboard(event)

    pool, worker = _pool_and_worker()
    told = replace(
        context,
        watch=both,
        launched=lambda _step: shown(logger, events.launch),
        stopping=lambda _step: shown(logger, events.end),
        pool=pool,
        pool_worker=worker,
    )
    complete = False
    try:
        if context.approve is not None and Artifact(context.store, step.directory).manifest() is None:
            context.approve(step)
        away = _made_elsewhere(step, context)
        outcome = execute(step, told)
        complete = True
    except GateFailedError as error:
        # It was committed before it was judged.
        complete = True
        results = [result for result in error.results if isinstance(result, GateResult)]
        shown(logger, lambda: show_gates(step, results, context.store.locate(step.directory)))
        _tell(step, logger, error)
        raise
    except MediusError as error:
        _tell(step, logger, error)
        raise
    finally:
        dashboard.finish(complete)
        shown(logger, events.end)
    if away:
        outcome = replace(outcome, ref=outcome.ref.model_copy(update={"reused": False}))
    shown(logger, lambda: describe(step, outcome))
    if not outcome.ref.reused:
        return outcome.ref
    name, how = "Reused", "was finished already"
    if outcome.meanwhile:
        name, how = "Shared", "was finished by another run while this one waited for it or made shards of it"
    message = f"{outcome.ref.uri} {how}: key {step.key}, digest {outcome.ref.digest}"
    return Completed(name=name, message=message, data=outcome.ref)


def _tell(step: Step, logger: Logger, error: MediusError) -> None:
    # What was stopped did not fail.
    if not isinstance(error, InterruptedRunError):
        shown(logger, lambda: show_failure(step, error))


def _made_elsewhere(step: Step, context: RunContext) -> bool:
    """Has the step made on the pool that it names, if it names one and is not finished; whether it did."""
    if step.config.runtime.pool is None or context.elsewhere is None:
        return False
    if Artifact(context.store, step.directory).manifest() is not None:
        return False
    context.elsewhere(step)
    return True


def _pool_and_worker() -> tuple[str | None, str | None]:
    """The work pool of this flow run and the name of its worker, as far as it has them."""
    flow = FlowRunContext.get()
    pool = flow.flow_run.work_pool_name if flow is not None and flow.flow_run is not None else None
    return pool, os.environ.get("PREFECT__WORKER_NAME")


def submit_stage(step: Step, context: RunContext, after: list[Any], name: str | None = None) -> Any:
    """Submits a step to the flow's task runner, to start when the futures in `after` are done.

    `name` is shown in place of the step's label, where several steps of one flow have the same.
    """
    runtime = step.config.runtime
    label = name or step.label
    named = run_stage.with_options(
        # Until a task run begins, the dashboard shows the task's name with a number.
        name=label,
        task_run_name=label,
        retries=runtime.retries,
        retry_delay_seconds=runtime.retry_delay_seconds,
        # No tags: for each Prefect asks its server for a slot before the task begins, and a server that is away then
        # ends the task run beyond any retry.
    )
    return named.submit(StageRun(step, context), wait_for=after)  # type: ignore[call-overload]
