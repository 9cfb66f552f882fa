"""CPU time of this process, all of its threads: what a core costs, whoever else uses the machine. Or a clock of the
caller's, where a core is not what works."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Paired:
    """Two ways timed in turns, so that what slows the machine slows both."""

    ratio: float
    """Median over the repetitions of seconds of A / seconds of B in the same turn."""
    seconds_a: float
    """Median."""
    seconds_b: float
    lowest: float
    highest: float
    """Of the ratios."""
    repetitions: int
    clock: str = "CPU time"
    """Whose seconds they are."""

    @property
    def spread(self) -> str:
        """For the conditions of a row."""
        return (
            f"{self.seconds_a:.3g} s over {self.seconds_b:.3g} s of {self.clock}, median of {self.repetitions} pairs "
            f"of {self.lowest:.3f} to {self.highest:.3f}"
        )


def paired(
    a: Callable[[], object],
    b: Callable[[], object],
    repetitions: int,
    warm_up: int = 1,
    seconds: Callable[[Callable[[], object]], float] | None = None,
    clock: str = "CPU time",
) -> Paired:
    """Times A and B in alternating order (AB, BA, AB, …), after `warm_up` untimed turns of both.

    `seconds` times one call (default `cpu_seconds`); `clock` says what it counts.
    """
    seconds = seconds or cpu_seconds
    for _ in range(warm_up):
        a()
        b()
    times: list[tuple[float, float]] = []
    for turn in range(repetitions):
        if turn % 2:
            second = seconds(b)
            first = seconds(a)
        else:
            first = seconds(a)
            second = seconds(b)
        times.append((first, second))
    ratios = [first / second for first, second in times]
    return Paired(
        ratio=statistics.median(ratios),
        seconds_a=statistics.median(first for first, _ in times),
        seconds_b=statistics.median(second for _, second in times),
        lowest=min(ratios),
        highest=max(ratios),
        repetitions=repetitions,
        clock=clock,
    )


def median_cpu_seconds(action: Callable[[], object], repetitions: int, warm_up: int = 1) -> float:
    """Median CPU seconds of one call."""
    for _ in range(warm_up):
        action()
    return statistics.median(cpu_seconds(action) for _ in range(repetitions))


def cpu_seconds(action: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    action()
    return time.process_time() - started
