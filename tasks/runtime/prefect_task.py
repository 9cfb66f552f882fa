"""The single Prefect task: every stage of every recipe is this one, under its own name.

Prefect shows, retries and schedules. It is not the memory: no cache, no persisted result; what a task returns is a
reference of a few hundred bytes into the store, and a second run learns what is done from the store alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

from prefect import task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.states import Completed
from prefect.tasks import Task

from tasks.artifacts.errors import MediusError
from tasks.runtime.declare import GateResult, Step
from tasks.runtime.execute import Outcome, RunContext, execute
from tasks.worker.spec import Event

_PROGRESS_SECONDS = 5
"""A progress update is an API call of 10–50 ms; once in five seconds keeps it below 1 % of a stage."""


def _worth_a_retry(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    try:
        state.result(raise_on_failure=True)
    except MediusError as error:
        return error.retryable
    except Exception:
        # `result` raises whatever the task raised. What no worker calls transient is a defect, and would fail again.
        return False
    return False


class _Progress:
    """Mirrors a worker's events: the last progress as a Prefect artifact, sentences into the run's log."""

    def __init__(self, step: Step, logger: logging.Logger | logging.LoggerAdapter[Any]) -> None:
        self._step = step
        self._logger = logger
        self._artifact: UUID | None = None
        self._next = 0.0

    def __call__(self, event: Event) -> None:
        _shown(self._logger, lambda: self._show(event))

    def _show(self, event: Event) -> None:
        if event.kind == "log":
            self._logger.info("%s: %s", self._step.label, event.message)
        if event.kind != "progress" or not event.total or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _PROGRESS_SECONDS
        percent = min(100.0, 100.0 * (event.done or 0) / event.total)
        rates = " ".join(
            f"{name}={value:,.0f}" for name, value in event.values.items() if isinstance(value, int | float)
        )
        text = f"{self._step.label}: {event.done:,.0f} of {event.total:,.0f} {event.unit} {rates}".strip()
        if self._artifact is None:
            self._artifact = create_progress_artifact(percent, key=_slug(self._step.label), description=text)  # type: ignore[assignment]
        else:
            update_progress_artifact(self._artifact, progress=percent, description=text)


def _shown(logger: logging.Logger | logging.LoggerAdapter[Any], show: Callable[[], object]) -> None:
    """What only informs must not end a stage: a dashboard that is away for a minute costs a line, not a GPU day."""
    try:
        show()
    except Exception as error:
        logger.warning("the dashboard could not be told: %s", error)


def _slug(text: str) -> str:
    return text.lower().replace("_", "-").replace(".", "-")


class StageRun:
    """A step with its context. Deliberately no dataclass: Prefect walks into those, and a step holds its whole DAG."""

    def __init__(self, step: Step, context: RunContext) -> None:
        self.step = step
        self.context = context


@task(cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=_worth_a_retry, log_prints=False)
def run_stage(stage_run: StageRun) -> Any:
    """Runs one step; returns its ArtifactRef, in a state named Reused where nothing had to be done."""
    step, context = stage_run.step, stage_run.context
    logger = get_run_logger()
    logger.info("%s: key %s, %s", step.label, step.key[:16], context.store.locate(step.directory))
    progress = _Progress(step, logger)
    watch = context.watch

    def both(of: Step, event: Event) -> None:
        watch(of, event)
        progress(event)

    outcome = execute(step, replace(context, watch=both))
    _shown(logger, lambda: _describe(step, outcome))
    if outcome.ref.reused:
        return Completed(name="Reused", message=f"{outcome.ref.uri} was finished already", data=outcome.ref)
    return outcome.ref


def _describe(step: Step, outcome: Outcome) -> None:
    if outcome.gates:
        create_table_artifact(
            [_gate_row(result) for result in outcome.gates],
            key=f"gates-{_slug(step.label)}",
            description=f"Gates of {step.label} ({outcome.ref.uri})",
        )
    create_markdown_artifact(
        f"**{step.label}** {'reused' if outcome.ref.reused else 'made'}\n\n- key `{step.key}`\n"
        f"- digest `{outcome.ref.digest}`\n- {outcome.ref.uri}\n",
        key=f"stage-{_slug(step.label)}",
    )


def _gate_row(result: GateResult) -> dict[str, Any]:
    return {
        "gate": result.gate,
        "passed": "yes" if result.passed else "NO",
        "value": result.value,
        "wants": f"{result.comparison} {result.threshold:g}",
        "meaning": result.meaning,
    }


def submit_stage(step: Step, context: RunContext, after: list[Any]) -> Any:
    """Submits a step to the flow's task runner, to start when the futures in `after` are done."""
    runtime = step.config.runtime
    named = run_stage.with_options(
        name=step.stage.name,
        task_run_name=step.label,
        retries=runtime.retries,
        retry_delay_seconds=runtime.retry_delay_seconds,
        tags={f"stage:{step.stage.name}"},
    )
    return named.submit(StageRun(step, context), wait_for=after)  # type: ignore[call-overload]
