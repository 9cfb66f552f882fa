"""`medius run …` in this process, with a clock beside it: what of its time its workers' processes had.

python -m tests.bench.flow_meter FILE run micro …

FILE gets what `Metered` holds as JSON, however the run ends.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Metered:
    """Seconds of one run."""

    flow: float = 0
    """Wall time from the call of the flow to its return."""
    workers: dict[str, float] = field(default_factory=dict)
    """Wall time of each launch's process, from its start to its end, by launch."""
    cpu: float = 0
    """CPU time of this process and its threads, from its start; its children have their own."""


def meter(metered: Metered) -> None:
    """From here on runs in this process are metered."""
    from flows import pipeline
    from tasks.runtime import execute
    from tasks.runtime.launch import WorkerProcess, launch

    run = pipeline.distillation

    def launched(module: str, spec: Path, *more: Any) -> WorkerProcess:
        started = time.monotonic()
        process = launch(module, spec, *more)
        wait = process.wait

        def waited(poll: Callable[[], None], poll_seconds: float = 0.2) -> int:
            try:
                return wait(poll, poll_seconds)
            finally:
                metered.workers[spec.parent.name] = time.monotonic() - started

        process.wait = waited  # type: ignore[method-assign]
        return process

    def flow(*arguments: Any) -> Any:
        started = time.monotonic()
        try:
            return run(*arguments)
        finally:
            metered.flow = time.monotonic() - started

    execute.launch = launched
    pipeline.distillation = flow  # type: ignore[assignment]


def main() -> None:
    """What the module does as a program."""
    file = Path(sys.argv.pop(1))
    metered = Metered()
    from flows import cli

    start = cli.start_prefect

    def started() -> Callable[[], None]:
        # Prefect may be imported from here on, not before.
        wait = start()
        meter(metered)
        return wait

    cli.start_prefect = started
    try:
        cli.main()
    finally:
        used = resource.getrusage(resource.RUSAGE_SELF)
        metered.cpu = used.ru_utime + used.ru_stime
        file.write_text(json.dumps(asdict(metered)))


if __name__ == "__main__":
    main()
