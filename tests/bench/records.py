"""What a row of the bench is: declared before anything runs, then measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from tasks.artifacts.frozen import Frozen

GROUPS = ("store", "dump", "train", "surgery", "ops", "plan", "gpu")
Group = Literal["store", "dump", "train", "surgery", "ops", "plan", "gpu"]
Comparator = Literal["<=", ">="]


class Declared(Frozen):
    """A row that must be measured. Without a goal it informs, and is ok once it has a value."""

    name: str
    """group.what.where, such as store.bytes_per_token.top64.49k."""
    unit: str
    goal: float | None = None
    comparator: Comparator = "<="
    within_errors: int = 0
    """By how many standard errors of the value the goal may be missed; without an error the row is not ok."""
    says: str
    """What the value is, in one line."""

    @property
    def group(self) -> str:
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class Measured:
    """What a measurement yields for one row. `value` may be NaN; the row is then not ok."""

    name: str
    value: float
    conditions: str
    """Data, weights, captured mass, what was left out: what another must know to get this value again."""
    repetitions: int = 1
    error: float = math.nan
    """Standard error of the value, where the row is judged by it."""


class Row(Frozen):
    """An entry of build/bench.json. A row without a value was not measured, and `conditions` says why."""

    name: str
    value: float | None
    unit: str
    goal: float | None
    comparator: Comparator
    ok: bool
    conditions: str
    repetitions: int


def judged(declared: Declared, measured: Measured, machine: str) -> Row:
    """The row of a measurement. Its goal is the declared one with the standard errors that the row allows."""
    finite, known = math.isfinite(measured.value), True
    conditions = f"{measured.conditions}; {machine}"
    goal = declared.goal
    if goal is not None and declared.within_errors:
        errors = f"{declared.within_errors} standard errors of {measured.error:.4g}"
        conditions = f"goal {goal:g} within {errors}; {conditions}"
        known = math.isfinite(measured.error)
        allowed = declared.within_errors * measured.error if known else 0.0
        goal += allowed if declared.comparator == "<=" else -allowed
    reached = goal is None or (measured.value <= goal if declared.comparator == "<=" else measured.value >= goal)
    return _row(
        declared,
        goal,
        value=measured.value if finite else None,
        ok=finite and known and reached,
        conditions=conditions if finite else f"the value is {measured.value}; {conditions}",
        repetitions=measured.repetitions,
    )


def missing(declared: Declared, why: str) -> Row:
    """The row of what was not measured."""
    return _row(declared, declared.goal, value=None, ok=False, conditions=f"not measured: {why}", repetitions=0)


def _row(
    declared: Declared, goal: float | None, *, value: float | None, ok: bool, conditions: str, repetitions: int
) -> Row:
    return Row(
        name=declared.name,
        value=value,
        unit=declared.unit,
        goal=goal,
        comparator=declared.comparator,
        ok=ok,
        conditions=conditions,
        repetitions=repetitions,
    )


@dataclass(frozen=True)
class Measurement:
    """A function that yields the values of the rows whose names match its patterns (fnmatch).

    A module tests/bench/<group>_*.py has them in its list MEASUREMENTS. If one fails, its rows have no value and the
    others are measured all the same.
    """

    name: str
    function: Callable[[], Iterator[Measured]]
    patterns: tuple[str, ...]
