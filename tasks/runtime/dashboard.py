"""What the dashboard shows of a stage: progress, curves, a table of gates, where its artifact is or why it failed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate

from tasks.artifacts.errors import MediusError
from tasks.runtime.curves import Curves
from tasks.runtime.declare import GateResult, Step
from tasks.runtime.execute import Outcome
from tasks.runtime.newest_teller import NewestTeller
from tasks.runtime.stage_events import StageEvents
from tasks.worker.spec import Event

Logger = logging.Logger | logging.LoggerAdapter[Any]
_PROGRESS_SECONDS = 5
"""A progress update is an API call of 10–50 ms; once in five seconds keeps it below 1 % of a stage."""
_CURVE_SECONDS = 15
_CURVE_SHARE = 1 / 200
"""Of the time so far between two pictures of the curves: the server keeps each of 20 kB as an event, too, and after a
day nobody sees what fifteen seconds change. A week makes 1,300 pictures."""
_LAST_SECONDS = 30
"""What comes last is waited for so long: it takes a moment, unless the server is away."""


class Dashboard:
    """Mirrors a worker's events: progress and curves as Prefect artifacts, sentences into the run's log. No call waits
    for the server but `finish`."""

    def __init__(self, step: Step, logger: Logger) -> None:
        self._step = step
        self._logger = logger
        self._progress: UUID | None = None
        self._next_progress = 0.0
        self._pace: tuple[str, float, float] | None = None
        self._last: Event | None = None
        self._curves = Curves()
        self._curves_shown: UUID | None = None
        self._first_metric: float | None = None
        self._next_curves = 0.0
        self._events = StageEvents(step)
        self._teller = NewestTeller()

    def __call__(self, event: Event) -> None:
        """Shows one event, soon."""
        shown(self._logger, lambda: self._show(event))

    def finish(self, complete: bool) -> None:
        """Shows progress and curves once more, with what came last, and tells that the stage has ended.

        Args:
            complete: whether it has made what it was to make.
        """
        shown(self._logger, self._events.end)
        shown(self._logger, lambda: self._conclude(complete))
        if self._curves.curves:
            shown(self._logger, self._draw)
        self._teller.close(_LAST_SECONDS)

    def _show(self, event: Event) -> None:
        match event.kind:
            case "log":
                self._logger.info("%s: %s", self._step.label, event.message)
            case "progress" if event.total:
                self._advance(event, event.done or 0.0, event.total)
            case "metric":
                self._plot(event)

    def _advance(self, event: Event, done: float, total: float) -> None:
        self._last = event
        if self._pace is None or self._pace[0] != event.unit:
            self._pace = (event.unit, event.time, done)
        speed = event.values.get("tokens_per_second")
        self._events.progress(done, total, event.unit, speed if isinstance(speed, int | float) else None)
        if time.monotonic() < self._next_progress:
            return
        self._next_progress = time.monotonic() + _PROGRESS_SECONDS
        left = event.values.get(
            "seconds_left", _seconds_left(event.time - self._pace[1], done - self._pace[2], total - done)
        )
        self._tell(done, total, event.unit, _said(event.values, left))

    def _tell(self, done: float, total: float, unit: str, said: str) -> None:
        # The label is the card's title, and a card shows 40 characters below it.
        text = f"{done:,.0f} of {total:,.0f} {unit}{said}"
        percent = min(100.0, round(100.0 * done / total, 1))
        self._teller.tell("progress", lambda: shown(self._logger, lambda: self._send_progress(percent, text)))

    def _send_progress(self, percent: float, text: str) -> None:
        if self._progress is None:
            self._progress = create_progress_artifact(percent, key=_slug(self._step.label), description=text)  # type: ignore[assignment]
        else:
            update_progress_artifact(self._progress, progress=percent, description=text)

    def _conclude(self, complete: bool) -> None:
        # What came within the pause of an update was not shown, and workers need not tell of their last piece.
        if (last := self._last) is not None and last.total:
            done = last.total if complete else last.done or 0.0
            self._tell(done, last.total, last.unit, f"{_said(last.values, None)}, {'done' if complete else 'stopped'}")

    def _plot(self, event: Event) -> None:
        self._curves.add(event.values)
        now = time.monotonic()
        if self._first_metric is None:
            self._first_metric, self._next_curves = now, now + _CURVE_SECONDS
        if now >= self._next_curves:
            self._next_curves = now + max(_CURVE_SECONDS, _CURVE_SHARE * (now - self._first_metric))
            self._draw()

    def _draw(self) -> None:
        page = self._curves.markdown()
        self._teller.tell("curves", lambda: shown(self._logger, lambda: self._send_curves(page)))

    def _send_curves(self, page: str) -> None:
        if self._curves_shown is None:
            key, description = f"curves-{_slug(self._step.label)}", f"Curves of {self._step.label}"
            self._curves_shown = create_markdown_artifact(page, key=key, description=description)  # type: ignore[assignment]
        else:
            get_client(sync_client=True).update_artifact(self._curves_shown, ArtifactUpdate(data=page))


def _seconds_left(seconds: float, done: float, left: float) -> float | None:
    return seconds / done * left if done > 0 and seconds > 0 else None


def _said(values: Mapping[str, Any], seconds_left: float | None) -> str:
    """What stands beside a progress, each part after a comma; first what a run is watched for."""
    first, others = [], []
    for name, value in values.items():
        if not isinstance(value, int | float) or name == "seconds_left":
            continue
        match name:
            case "tokens_per_second":
                first.append(f"{value:,.0f} tokens/s")
            case "mfu":
                others.append(f"{100 * value:.3g} % of the peak FLOP/s")
            case "data_wait":
                others.append(f"{100 * value:.2g} % of the time waiting for data")
            case _:
                others.append(f"{name.replace('_', ' ')} {value:,.4g}")
    if seconds_left is not None:
        first.append(f"{_duration(seconds_left)} left")
    return "".join(f", {part}" for part in [*first, *others])


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 48 * 60 else f"{minutes / 1440:.1f} days"


def shown(logger: Logger, show: Callable[[], object]) -> None:
    """What only informs must not end a stage: a dashboard that is away for a minute costs a line, not a GPU day."""
    try:
        show()
    except Exception as error:
        logger.warning("the dashboard could not be told: %s", error)


def _slug(text: str) -> str:
    return text.lower().replace("_", "-").replace(".", "-")


def show_gates(step: Step, results: Sequence[GateResult], uri: str) -> None:
    if results:
        create_table_artifact(
            [_gate_row(result) for result in results],
            key=f"gates-{_slug(step.label)}",
            description=f"Gates of {step.label} ({uri})",
        )


def show_failure(step: Step, error: MediusError) -> None:
    """What happened and what to do next, with the end of the worker's log: a run's page cuts its message short."""
    sentence, _, tail = str(error).partition("\n")
    create_markdown_artifact(
        f"**{step.label} failed**\n\n{sentence}\n" + (f"\n```\n{tail}\n```\n" if tail else ""),
        key=f"failure-{_slug(step.label)}",
        description=sentence,
    )


def describe(step: Step, outcome: Outcome) -> None:
    """Leaves the gates' table and, of an artifact that this run has made, where it is; of others the state says it."""
    show_gates(step, outcome.gates, outcome.ref.uri)
    if not outcome.ref.reused:
        create_markdown_artifact(
            f"**{step.label}** made\n\n- key `{step.key}`\n- digest `{outcome.ref.digest}`\n- {outcome.ref.uri}\n",
            key=f"stage-{_slug(step.label)}",
            description=f"{step.label} made: key {step.key[:16]}",
        )


def _readable(value: float | None) -> float | None:
    """Six digits of a ratio or a loss; counts as they are."""
    return value if value is None or float(value).is_integer() else float(f"{value:.6g}")


def _gate_row(result: GateResult) -> dict[str, Any]:
    return {
        "gate": result.gate,
        "passed": "yes" if result.passed else "NO",
        "value": _readable(result.value),
        "wants": f"{result.comparison} {result.threshold:g}",
        "meaning": result.meaning,
    }
