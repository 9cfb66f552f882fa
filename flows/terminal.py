"""Progress of a run in the terminal: live bars where there is one, else a line when something changed."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from functools import partial
from threading import Lock
from types import TracebackType
from typing import Self

from prefect.logging.handlers import PrefectConsoleHandler
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tasks.runtime.declare import Step
from tasks.worker.spec import Event

_LINE_SECONDS = 10


def outlive_the_terminal() -> None:
    """Lets this process go on where whoever reads its output is gone, such as a Prefect worker that was killed.

    Rich would end it with the first line that Prefect's handlers log after that, as a run that crashed.
    """
    # A copy first: other threads import modules, and so make loggers, meanwhile.
    loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]
    for handler in {handler for logger in (logging.root, *loggers) for handler in logger.handlers}:
        if isinstance(handler, PrefectConsoleHandler):
            handler.console.on_broken_pipe = partial(setattr, handler.console, "quiet", True)  # type: ignore[method-assign]


class Terminal:
    """Receives the events of all workers, from any thread."""

    def __init__(self, console: Console | None = None) -> None:
        """By default it writes to standard error."""
        self.console = console or Console(stderr=True, highlight=False)
        self._live = self.console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description:24}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}% {task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self._live,
        )
        self._bars: dict[str, TaskID] = {}
        self._last_line: dict[str, float] = {}
        self._lock = Lock()

    def watch(self, step: Step, event: Event) -> None:
        """Shows one event. What only informs must not end a stage: a terminal that is gone costs the lines."""
        # Rich would end the process at a closed pipe.
        with self._lock, suppress(Exception, SystemExit):
            if event.kind == "log":
                self.console.print(f"{step.label:24} {event.message}", markup=False)
            elif event.kind == "progress" and event.total:
                self._advance(step, event)

    def _advance(self, step: Step, event: Event) -> None:
        done, total = event.done or 0.0, event.total or 1.0
        rate = event.values.get("tokens_per_second")
        shown = f"{rate:,.0f} tokens/s" if isinstance(rate, int | float) else ""
        if self._live:
            if step.label not in self._bars:
                self._bars[step.label] = self._progress.add_task(step.label, total=total, rate=shown)
            self._progress.update(self._bars[step.label], completed=done, total=total, rate=shown, visible=done < total)
        elif time.monotonic() >= self._last_line.get(step.label, 0):
            self._last_line[step.label] = time.monotonic() + _LINE_SECONDS
            line = f"{step.label:24} {done:,.0f} of {total:,.0f} {event.unit} {shown}".rstrip()
            self.console.print(line, markup=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
