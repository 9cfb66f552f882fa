"""The harness itself: whatever happens in a measurement, each declared row is in the file, and ok only with a value."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from tests.bench import __main__ as command
from tests.bench import harness
from tests.bench.harness import load, measure, merge, names_of, read, show, unfinished
from tests.bench.records import GROUPS, Declared, Measured, Measurement, Row, judged
from tests.bench.rows import ROWS
from tests.bench.timing import paired

FIELDS = {"name", "value", "unit", "goal", "comparator", "ok", "conditions", "repetitions"}


def declared(name: str, goal: float | None = None, comparator: str = "<=") -> Declared:
    return Declared.model_validate(
        {"name": name, "unit": "s", "goal": goal, "comparator": comparator, "says": "what it is"}
    )


def measurement(name: str, *values: Measured | Exception) -> Measurement:
    """Yields the values of `name.*` in turn, or raises."""

    def run() -> Iterator[Measured]:
        for value in values:
            if isinstance(value, Exception):
                raise value
            yield value

    return Measurement(name, run, (f"{name}.*",))


def by_name(rows: list[Row]) -> dict[str, Row]:
    return {row.name: row for row in rows}


@pytest.mark.parametrize(
    ("goal", "comparator", "value", "ok"),
    [
        (2.0, "<=", 2.0, True),
        (2.0, "<=", 2.001, False),
        (2.0, ">=", 2.0, True),
        (2.0, ">=", 1.999, False),
        (0.0, "<=", 0.0, True),
        (None, "<=", 1e9, True),
        (None, "<=", math.nan, False),
        (2.0, "<=", math.nan, False),
        (2.0, ">=", math.nan, False),
        (2.0, ">=", math.inf, False),
    ],
)
def test_a_row_is_ok_when_its_value_reaches_its_goal(
    goal: float | None, comparator: str, value: float, ok: bool
) -> None:
    row = judged(declared("store.a", goal, comparator), Measured("store.a", value, "data"), "machine")
    assert row.ok is ok
    assert row.value == (value if math.isfinite(value) else None)
    assert row.conditions.endswith("data; machine")


@pytest.mark.parametrize(
    ("comparator", "value", "error", "ok", "goal"),
    [
        ("<=", 1.09, 0.05, True, 1.1),
        ("<=", 1.11, 0.05, False, 1.1),
        (">=", 0.91, 0.05, True, 0.9),
        (">=", 0.89, 0.05, False, 0.9),
        ("<=", 1.0, 0.0, True, 1.0),
        ("<=", 0.5, math.nan, False, 1.0),
        ("<=", 0.5, math.inf, False, 1.0),
    ],
)
def test_a_goal_may_be_missed_by_as_many_standard_errors_as_its_row_allows(
    comparator: str, value: float, error: float, ok: bool, goal: float
) -> None:
    within = declared("store.a", 1.0, comparator).model_copy(update={"within_errors": 2})
    row = judged(within, Measured("store.a", value, "data", error=error), "machine")
    assert row.ok is ok
    assert row.goal == pytest.approx(goal)
    assert row.value == value
    assert "within 2 standard errors" in row.conditions


def test_an_exception_takes_only_the_rows_it_prevents() -> None:
    rows = measure(
        [declared(name) for name in ("store.a.1", "store.a.2", "store.b.1")],
        [
            measurement("store.a", Measured("store.a.1", 1.0, ""), OSError("no space left\non device")),
            measurement("store.b", Measured("store.b.1", 3.0, "", 7)),
        ],
    )
    assert [row.name for row in rows] == ["store.a.1", "store.a.2", "store.b.1"]
    assert [row.ok for row in rows] == [True, False, True]
    assert rows[1].value is None
    assert rows[1].conditions == "not measured: store.a failed: OSError: no space left"
    assert rows[2].repetitions == 7


def test_rows_that_nobody_yields_are_not_ok() -> None:
    rows = measure(
        [declared("store.a.1"), declared("store.a.2"), declared("store.c")],
        [measurement("store.a", Measured("store.a.2", 1.0, ""))],
        faults=["store_c.py cannot be imported (ImportError: x)"],
    )
    found = by_name(rows)
    assert not found["store.a.1"].ok
    assert "store.a ended without it" in found["store.a.1"].conditions
    assert not found["store.c"].ok
    assert "store_c.py cannot be imported" in found["store.c"].conditions
    assert found["store.a.2"].ok


def test_an_undeclared_row_is_a_mistake_of_the_bench() -> None:
    with pytest.raises(ValueError, match=r"store\.a yields store\.a\.2, which is not declared"):
        measure([declared("store.a.1")], [measurement("store.a", Measured("store.a.2", 1.0, ""))])


def test_a_measurement_without_declared_rows_does_not_run() -> None:
    rows = measure([declared("store.a.1")], [measurement("dump.x", AssertionError("it ran"))])
    assert [row.name for row in rows] == ["store.a.1"]


def test_a_stopped_bench_leaves_what_it_had() -> None:
    kept: list[list[Row]] = []
    stop = measurement("store.b")
    stop = Measurement("store.b", lambda: (_ for _ in ()).throw(KeyboardInterrupt), stop.patterns)
    with pytest.raises(KeyboardInterrupt):
        measure(
            [declared("store.a.1"), declared("store.b.1")],
            [measurement("store.a", Measured("store.a.1", 1.0, "")), stop],
            keep=kept.append,
        )
    rows = by_name(kept[-1])
    assert rows["store.a.1"].ok
    assert rows["store.b.1"].conditions == "not measured: the bench was stopped before it"


def test_merging_replaces_the_groups_that_ran_and_keeps_the_others(tmp_path: Path) -> None:
    file = tmp_path / "build" / "bench.json"
    old = [judged(declared(name), Measured(name, 1.0, "old"), "m") for name in ("store.a", "store.gone", "dump.a")]
    merge(file, ["store", "dump"], old)
    merge(file, ["store"], [judged(declared("store.a"), Measured("store.a", 2.0, "new"), "m")])
    content = json.loads(file.read_text())
    assert [(row["name"], row["value"]) for row in content] == [("dump.a", 1.0), ("store.a", 2.0)]
    assert all(set(row) == FIELDS for row in content)
    assert [row.conditions for row in read(file)] == ["old; m", "new; m"]


@pytest.mark.parametrize(("value", "code"), [(1.0, 0), (3.0, 1), (math.nan, 1), (None, 1)])
def test_the_exit_code_says_whether_every_row_that_ran_is_ok(
    value: float | None, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [] if value is None else [Measured("store.a.1", value, "")]
    monkeypatch.setattr(command, "load", lambda _: ([measurement("store.a", *values)], []))
    file = tmp_path / "bench.json"
    # A row of another group that failed before is no news of this run.
    merge(file, ["dump"], [judged(declared("dump.a", 0.0), Measured("dump.a", 1.0, ""), "")])
    declarations = [declared("store.a.1", 2.0), declared("dump.a", 0.0)]
    assert command.main(["--only", "store"], declarations, file) == code
    assert [row.name for row in read(file)] == ["dump.a", "store.a.1"]
    assert command.main([], declarations, file) == 1


@pytest.mark.parametrize(("value", "stays"), [(1.0, False), (3.0, False), (None, True)])
def test_only_a_bench_that_was_stopped_finds_something_to_go_on_from(
    value: float | None, stays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ok or not: a row that was measured is measured afresh the next time. Of another group everything stays."""
    monkeypatch.setattr(harness, "BENCH", tmp_path / "bench")
    for group in ("store", "dump"):
        unfinished(group).mkdir(parents=True)
        (unfinished(group) / "timed.json").write_text("1")
    values = [Measured("store.a.2", 1.0, ""), *([] if value is None else [Measured("store.a.1", value, "")])]
    monkeypatch.setattr(command, "load", lambda _: ([measurement("store.a", *values)], []))
    rows = [declared("store.a.1", 2.0), declared("store.a.2"), declared("dump.a")]
    command.main(["--only", "store"], rows, tmp_path / "bench.json")
    assert unfinished("store").exists() is stays
    assert (unfinished("dump") / "timed.json").exists()


def test_rows_by_name_are_measured_with_what_comes_of_the_same_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "BENCH", tmp_path / "bench")
    unfinished("store").mkdir(parents=True)
    both = measurement("store.a", Measured("store.a.1", 2.0, ""), Measured("store.a.2", 2.0, ""))
    other = measurement("store.b", AssertionError("it is not to be measured"))
    monkeypatch.setattr(command, "load", lambda _: ([both, other], []))
    file = tmp_path / "bench.json"
    rows = [declared(name) for name in ("store.a.1", "store.a.2", "store.b.1")]
    merge(file, ["store"], [judged(row, Measured(row.name, 1.0, ""), "") for row in rows])
    assert command.main(["--only", "store.a.?"], rows, file) == command.main(["--only", "*.1"], rows[:2], file) == 0
    assert {row.name: row.value for row in read(file)} == {"store.a.1": 2.0, "store.a.2": 2.0, "store.b.1": 1.0}
    assert unfinished("store").exists(), "the other rows may still go on from it"


def test_a_group_without_rows_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    assert command.main(["--only", "train"], [declared("store.a")], file) == 2
    assert capsys.readouterr().err == "no rows are declared for train; choose one of store, or rows' names\n"
    assert not file.exists()


def test_the_table_has_one_line_a_row_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        judged(declared(f"store.curve.adaptive_1e-2.bytes_per_token.{place}k", 110), Measured("", 1e6, "x" * 500), "m")
        for place in range(3)
    ]
    show(rows)
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("store.curve")]
    assert len(lines) == 3
    assert out.count("not ok: store.curve") == 3, "the whole conditions of what failed follow the table"
    assert "<= 110" in lines[0]
    assert "1,000,000" in lines[0]
    narrow = Console(width=60, record=True, file=None)
    show(rows, narrow)
    assert sum("store." in line for line in narrow.export_text().splitlines()) == 3


def test_every_declared_row_has_exactly_one_measurement_and_every_pattern_a_row() -> None:
    groups = sorted({row.group for row in ROWS}, key=GROUPS.index)
    measurements, faults = load(groups)
    assert faults == []
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    owners = [name for measurement in measurements for name in names_of(measurement, names)]
    assert sorted(owners) == sorted(names)
    for each in measurements:
        for pattern in each.patterns:
            assert names_of(Measurement("", each.function, (pattern,)), names), f"{each.name}: {pattern} has no row"


def test_two_ways_are_timed_in_turns() -> None:
    calls: list[str] = []

    def busy(name: str, loops: int) -> None:
        calls.append(name)
        sum(range(loops))

    result = paired(lambda: busy("a", 3_000_000), lambda: busy("b", 1_000_000), repetitions=5, warm_up=1)
    assert calls == ["a", "b", *("a", "b"), *("b", "a"), *("a", "b"), *("b", "a"), *("a", "b")]
    assert result.repetitions == 5
    # The true ratio is 3; a busy machine does not reorder it with 1.5 or 6.
    assert 1.5 < result.ratio < 6
