"""The table of faults in README.md: written by a pytest run in which every test of the suite ran, by no other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- faults -->", "<!-- end of faults -->"

Outcome = Literal["passed", "failed", "skipped"]
_SAID: dict[Outcome, str] = {"passed": "kept", "failed": "**broken**", "skipped": "not run"}


@dataclass(frozen=True)
class Line:
    """One test of the suite and how it ended."""

    fault: str
    promise: str
    outcome: Outcome
    seen: str = ""
    """What the test tells of how it went; of a skip, why."""


def rendered(lines: Iterable[Line]) -> str:
    """The table as Markdown, in the order of the lines."""
    rows = ["| Fault | Promise | Result |", "|---|---|---|"]
    for line in lines:
        seen = f": {line.seen}" if line.seen else ""
        rows.append(f"| {_cell(line.fault)} | {_cell(line.promise)} | {_SAID[line.outcome]}{_cell(seen)} |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", r"\|")


def is_whole(declared: Iterable[str], ended: Mapping[str, Line], files: Iterable[str], suite: Iterable[str]) -> bool:
    """Whether a session ran the suite, so that its table may replace the one that stands.

    Args:
        declared: ids of the tests of the suite that were collected, chosen or not.
        ended: those that ended.
        files: from which tests were collected.
        suite: all files of the suite.
    """
    declared = set(declared)
    return bool(declared) and set(suite) <= set(files) and declared == set(ended)


def write(lines: Iterable[Line], conditions: str, readme: Path = README) -> None:
    """Puts the table in place of the one that stands between the two marks.

    Raises:
        ValueError: the marks are not there.
    """
    text = readme.read_text()
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme} has no place for the table; put {BEGIN} and {END} where it belongs")
    readme.write_text(f"{head}{BEGIN}\n{rendered(lines)}\n\n{conditions}\n{END}{tail}")
