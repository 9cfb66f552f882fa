"""What a stage tells Prefect's event feed, for the alerts of infra/automations.yaml: it goes on, is slow, has ended."""

from __future__ import annotations

import time
from collections.abc import Callable

from prefect.events import emit_event
from prefect.runtime import flow_run

from tasks.runtime.declare import Step

PROGRESS = "medius.stage.progress"
SLOW = "medius.stage.slow"
ENDED = "medius.stage.ended"
_EVERY_SECONDS = 30
"""The server keeps each event for a week: a stage of two days leaves 6,000 of half a kB."""


class StageEvents:
    """The events of one step of one flow run; Prefect adds run, flow, deployment and tags by itself."""

    def __init__(self, step: Step, clock: Callable[[], float] = time.monotonic) -> None:
        self._step = step
        self._clock = clock
        self._next = 0.0
        self._begun = False

    def progress(self, done: float, total: float, unit: str, tokens_per_second: float | None) -> None:
        """Tells how far the stage is, and whether it is below its own floor; at most once in half a minute."""
        if self._clock() < self._next:
            return
        self._next = self._clock() + _EVERY_SECONDS
        self._begun = True
        said = {"done": done, "total": total, "unit": unit, "tokens_per_second": tokens_per_second}
        self._emit(PROGRESS, said)
        floor = self._step.config.runtime.min_tokens_per_second
        if floor is not None and tokens_per_second is not None and tokens_per_second < floor:
            self._emit(SLOW, {**said, "min_tokens_per_second": floor})

    def end(self) -> None:
        """Tells that nothing more is to be expected."""
        if self._begun:
            self._emit(ENDED, {})

    def _emit(self, event: str, payload: dict[str, object]) -> None:
        label = self._step.label
        resource = {
            "prefect.resource.id": f"medius.stage.{flow_run.get_id()}.{label}",
            "prefect.resource.name": label,
            "medius.stage": self._step.stage.name,
            "medius.key": self._step.key[:16],
        }
        emit_event(event, resource, payload=payload)
