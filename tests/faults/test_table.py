"""The table of faults is written by whole sessions only, and says what broke."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.table import BEGIN, END, README, Line, is_whole, rendered, write

LINES = [
    Line("kill -9", "goes on", "passed", "after step 4"),
    Line("full | disk", "one sentence", "failed"),
    Line("clock", "refused", "skipped", "libfaketime is not installed"),
]


def test_the_table_says_what_was_kept_broken_and_not_run() -> None:
    assert rendered(LINES).splitlines()[2:] == [
        "| kill -9 | goes on | kept: after step 4 |",
        "| full \\| disk | one sentence | **broken** |",
        "| clock | refused | not run: libfaketime is not installed |",
    ]


def test_only_a_session_with_every_test_is_whole() -> None:
    ended = {"a": LINES[0], "b": LINES[1]}
    assert is_whole(["a", "b"], ended, {"x.py", "y.py"}, ["x.py", "y.py"])
    assert not is_whole(["a", "b", "c"], ended, {"x.py", "y.py"}, ["x.py", "y.py"]), "one was deselected"
    assert not is_whole(["a", "b"], ended, {"x.py"}, ["x.py", "y.py"]), "a file was not named"
    assert not is_whole([], {}, set(), [])


def test_writing_replaces_the_table_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write(LINES[:1], "2 CPUs.", readme)
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n| Fault |")
    assert text.endswith(f"|\n\n2 CPUs.\n{END}\nafter\n")
    assert "old" not in text
    readme.write_text("no place")
    with pytest.raises(ValueError, match="put <!-- faults -->"):
        write(LINES, "", readme)


def test_the_readme_has_a_place_for_it() -> None:
    text = README.read_text()
    assert 0 < text.index(BEGIN) < text.index(END)
