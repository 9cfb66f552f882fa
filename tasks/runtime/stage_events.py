"""What a stage tells Prefect's event feed, for the alerts of infra/automations.yaml: it goes on, is slow, has ended."""

from __future__ import annotations

import time
from collections.abc import Callable

from prefect.events import emit_event
from prefect.runtime import flow_run, task_run

from tasks.runtime.declare import Step
from tasks.runtime.stage_feed import ENDED, PROGRESS, SLOW, resource_of

_EVERY_SECONDS = 30
"""The server keeps each event for a week: a stage of two days leaves 6,000 of half a kB."""
_SLOW_SECONDS = 120
"""So long a stage has to be below its floor without a break."""
_SLOW_AGAIN_SECONDS = 3600


class StageEvents:
    """The events of one step of one flow run; Prefect adds run, flow, deployment and tags by itself."""

    def __init__(self, step: Step, clock: Callable[[], float] = time.monotonic) -> None:
        self._step = step
        self._clock = clock
        self._next = 0.0
        self._begun = False
        self._slow_since: float | None = None
        self._slow_again = 0.0

    def launch(self) -> None:
        """Tells that a worker was started: one that hangs before its first progress is to be missed, too."""
        self._begun = True
        self._emit(PROGRESS, {"done": 0})

    def progress(self, done: float, total: float, unit: str, tokens_per_second: float | None) -> None:
        """Tells how far the stage is; at most once in half a minute."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + _EVERY_SECONDS
        self._begun = True
        said = {"done": done, "total": total, "unit": unit, "tokens_per_second": tokens_per_second}
        self._emit(PROGRESS, said)
        floor = self._step.config.runtime.min_tokens_per_second
        if floor is not None and tokens_per_second is not None:
            self._compare(now, tokens_per_second, floor, said)

    def _compare(self, now: float, speed: float, floor: float, said: dict[str, object]) -> None:
        """Tells that the stage is slow where it has been for two minutes; once an hour while that lasts."""
        if speed >= floor:
            self._slow_since = None
            return
        if self._slow_since is None:
            self._slow_since = now
        if now - self._slow_since >= _SLOW_SECONDS and now >= self._slow_again:
            self._slow_again = now + _SLOW_AGAIN_SECONDS
            self._emit(SLOW, {**said, "min_tokens_per_second": floor, "seconds": now - self._slow_since})

    def end(self) -> None:
        """Tells that nothing more is to be expected; once, and only of what has begun."""
        if self._begun:
            self._begun = False
            self._emit(ENDED, {})

    def _emit(self, event: str, payload: dict[str, object]) -> None:
        # Several steps of one flow may have one label; their task runs have names of their own.
        resource = {
            **resource_of(str(flow_run.get_id()), task_run.get_name() or self._step.label),
            "medius.stage": self._step.stage.name,
            "medius.key": self._step.key[:16],
        }
        emit_event(event, resource, payload=payload)
