"""Runs measurements, judges their rows, and merges these into one file.

A measurement that fails leaves only its own rows without a value. The file is written after each measurement, so a
bench that is stopped leaves what it had, and what it had not is in the file as not measured.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path

from pydantic import TypeAdapter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.bench.paths import BENCH
from tests.bench.records import Declared, Measurement, Row, judged, missing

_ROWS = TypeAdapter(list[Row])
_VERSIONED = ("torch", "numpy", "zarr", "numcodecs")
FOLDER = Path(__file__).parent
WIDTH = 150
"""Of the table where no terminal says otherwise."""


def machine() -> str:
    """Processor, threads and versions, as every row's conditions end."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    libraries = " ".join(f"{name} {version(name)}" for name in _VERSIONED)
    return f"{model}, {threads} thread, Python {platform.python_version()} {libraries}"


def load(groups: Iterable[str]) -> tuple[list[Measurement], list[str]]:
    """The measurements of tests/bench/<group>_*.py, and a sentence for each module that cannot be imported."""
    found: list[Measurement] = []
    faults = []
    for group in groups:
        for path in sorted(FOLDER.glob(f"{group}_*.py")):
            try:
                found += importlib.import_module(f"tests.bench.{path.stem}").MEASUREMENTS
            except Exception as error:
                traceback.print_exc()
                faults.append(f"{path.name} cannot be imported ({_said(error)})")
    return found, faults


def measure(
    declared: Sequence[Declared],
    measurements: Sequence[Measurement],
    *,
    faults: Sequence[str] = (),
    conditions: str = "",
    keep: Callable[[list[Row]], None] = lambda _: None,
) -> list[Row]:
    """One row for each declared one, in its order.

    Args:
        declared: the rows there must be.
        measurements: each is run once; one without any declared row is not.
        faults: why measurements may be lacking.
        conditions: what holds for all rows.
        keep: called with all rows after each measurement.

    Raises:
        ValueError: a measurement yields a row that is not declared, or one that is not among its patterns.
    """
    by_name = {entry.name: entry for entry in declared}
    nobody = "; ".join(faults) or "no measurement yields it"
    rows = {entry.name: missing(entry, nobody) for entry in declared}
    owned = {measurement.name: names_of(measurement, by_name) for measurement in measurements}
    for names in owned.values():
        rows |= {name: missing(by_name[name], "the bench was stopped before it") for name in names}
    for measurement in measurements:
        names = owned[measurement.name]
        if not names:
            continue
        started = time.monotonic()
        print(f"{measurement.name} …", end=" ", flush=True)
        why = f"{measurement.name} ended without it"
        done = set()
        stray = ""
        try:
            for value in measurement.function():
                if value.name not in names:
                    stray = value.name
                    break
                rows[value.name] = judged(by_name[value.name], value, conditions)
                done.add(value.name)
        except Exception as error:
            print()
            traceback.print_exc()
            why = f"{measurement.name} failed: {_said(error)}"
        if stray:
            raise ValueError(f"{measurement.name} yields {stray}, which is not declared among its rows")
        rows |= {name: missing(by_name[name], why) for name in names if name not in done}
        keep(list(rows.values()))
        print(f"{len(done)} of {len(names)} rows in {time.monotonic() - started:.0f} s", flush=True)
    return list(rows.values())


def names_of(measurement: Measurement, declared: Iterable[str]) -> list[str]:
    """The declared rows that it is to yield."""
    return [name for name in declared if any(fnmatchcase(name, pattern) for pattern in measurement.patterns)]


def beside(
    chosen: Sequence[Declared], measurements: Sequence[Measurement], declared: Sequence[Declared]
) -> list[Declared]:
    """The rows that come of the measurements of `chosen`: what measures one of its rows measures all of them."""
    names = {entry.name for entry in chosen}
    for measurement in measurements:
        owned = names_of(measurement, [entry.name for entry in declared])
        if not names.isdisjoint(owned):
            names |= set(owned)
    return [entry for entry in declared if entry.name in names]


def unfinished(group: str) -> Path:
    """Where a group keeps what lets it go on after it was stopped, and nothing that a finished one may read again."""
    return BENCH / group / "unfinished"


def discard_finished(rows: Sequence[Row]) -> None:
    """Deletes that of each group all of whose rows were measured, ok or not: the next bench measures afresh."""
    for group in {_group_of(row) for row in rows}:
        if all(row.repetitions for row in rows if _group_of(row) == group):
            shutil.rmtree(unfinished(group), ignore_errors=True)


def _said(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:400]


def merge(file: Path, groups: Sequence[str], rows: Sequence[Row]) -> None:
    """Replaces the rows of `groups` in the file, and those of the same names; the others stay as they are."""
    names = {row.name for row in rows}
    others = [row for row in read(file) if _group_of(row) not in groups and row.name not in names]
    content = [row.model_dump(mode="json") for row in sorted([*others, *rows], key=_group_of)]
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.draft")
    draft.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(file)


def _group_of(row: Row) -> str:
    return row.name.partition(".")[0]


def read(file: Path) -> list[Row]:
    """The rows of a file; none if there is no file."""
    return _ROWS.validate_json(file.read_bytes()) if file.is_file() else []


def show(rows: Sequence[Row], console: Console | None = None) -> None:
    """One line a row with as much of its conditions as fits, then all of what is not ok. The file has everything."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=WIDTH)
    lines = [
        (
            row.name,
            "—" if row.value is None else _number(row.value),
            row.unit,
            "" if row.goal is None else f"{row.comparator} {_number(row.goal)}",
            "no" if not row.ok else "yes" if row.goal is not None else "·",
            str(row.repetitions),
            row.conditions,
        )
        for row in rows
    ]
    titles = ("row", "value", "unit", "goal", "ok", "reps", "conditions")
    # rich narrows all columns alike; only the last one may be cut.
    columns = zip(titles[:-1], *(line[:-1] for line in lines), strict=True)
    fixed = sum(max(map(len, column)) + 2 for column in columns)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in titles:
        numeric = title in ("value", "goal", "reps")
        table.add_column(title, justify="right" if numeric else "left", no_wrap=True, overflow="ellipsis")
    for line in lines:
        table.add_row(*map(escape, line[:-1]), escape(line[-1][: max(0, console.width - fixed - 2)]))
    console.print(table)
    for row in rows:
        if not row.ok:
            print(f"not ok: {row.name}: {row.conditions}")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
