"""The parts of a section, as plain data; page.html.jinja gives each kind its HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tasks.publish.tables import MISSING, Table

_NUMERIC = re.compile(
    r"[+-]?\d[\d,.]*(e[+-]?\d+)?\*?( ?[%×])?( (s|min|h|B|kB|MB|GB|TB))?( ± [\d.]+)?( → [\d.]+\*?)?( \(z [+-]?[\d.]+\))?"
)


@dataclass(frozen=True)
class Note:
    """A paragraph."""

    text: str
    kind: str = "note"


@dataclass(frozen=True)
class Grid:
    """A table with a caption, for those who cannot see where it stands. Columns of numbers stand to the right."""

    table: Table
    caption: str
    links: bool = False
    """Whether the first column names stages, whose figures are further down."""
    kind: str = "grid"

    @property
    def numeric(self) -> tuple[bool, ...]:
        """By column: whether every cell is a number, possibly with an error and a unit, or missing; never the first."""
        columns = zip(*self.table.rows, strict=True) if self.table.rows else [() for _ in self.table.columns]
        return tuple(index > 0 and _is_numeric(cells) for index, cells in enumerate(columns))


@dataclass(frozen=True)
class Figure:
    """A drawing with what it shows. `svg` is trusted: only the drawing functions of this folder make one."""

    svg: Markup
    caption: str
    title: str = ""
    legend: tuple[tuple[str, str], ...] = ()
    """(class of the mark, what it stands for)."""
    wide: bool = False
    """Keeps its size and scrolls where the page is narrower."""
    kind: str = "figure"


@dataclass(frozen=True)
class Figures:
    """Drawings beside each other; `small` ones stand four in a row."""

    figures: tuple[Figure, ...]
    title: str = ""
    small: bool = False
    kind: str = "figures"


@dataclass(frozen=True)
class Details:
    """What is folded away until someone asks."""

    summary: str
    aside: str
    blocks: tuple[Any, ...]
    anchor: str = ""
    kind: str = "details"


@dataclass(frozen=True)
class Listing:
    """Text in a fixed width, such as a recipe."""

    text: str
    kind: str = "listing"


@dataclass(frozen=True)
class Section:
    """A heading of the page with what stands under it."""

    anchor: str
    title: str
    blocks: tuple[Any, ...]


def _is_numeric(cells: Sequence[str]) -> bool:
    told = [cell for cell in cells if cell not in ("", MISSING)]
    return bool(cells) and all(_NUMERIC.fullmatch(cell) for cell in told)
