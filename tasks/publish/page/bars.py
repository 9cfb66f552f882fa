"""Amounts as horizontal bars, whole or in parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tasks.publish.page.svg import drawing, element, group, text

WIDTH = 352.0
_NAMES, _VALUES, _ROW = 122.0, 70.0, 19.0
_CHARACTERS = 20
_LEAST = 1.0
"""A part that is there is seen."""


@dataclass(frozen=True)
class Bar:
    """A name, its parts as (amount, style, meaning), and what stands behind it."""

    name: str
    parts: Sequence[tuple[float, str, str]]
    told: str

    @property
    def total(self) -> float:
        return sum(amount for amount, _, _ in self.parts)


def bar_chart(bars: Sequence[Bar], label: str) -> Markup:
    """One row a bar; the largest fills the width."""
    full = max((bar.total for bar in bars), default=0) or 1.0
    room = WIDTH - _NAMES - _VALUES
    rows = []
    for index, bar in enumerate(bars):
        y, x = _ROW * index, _NAMES
        name = bar.name if len(bar.name) <= _CHARACTERS else bar.name[: _CHARACTERS - 1] + "…"
        drawn = [
            element("title", f"{bar.name}: {bar.told}"),
            text(_NAMES - 8, y + 14, name, class_="name", text_anchor="end"),
        ]
        for amount, style, meaning in bar.parts:
            if amount <= 0:
                continue
            size = max(_LEAST, amount / full * room)
            piece = element("title", f"{bar.name}, {meaning}: {amount:,.6g}") if meaning else Markup("")
            drawn.append(element("rect", piece, x=x, y=y + 4, width=size, height=_ROW - 7, class_=f"fill {style}"))
            x += size
        drawn.append(text(x + 6, y + 14, bar.told, class_="value"))
        rows.append(group(drawn))
    return drawing(WIDTH, _ROW * len(bars) + 4, label, rows)
