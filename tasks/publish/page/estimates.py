"""Measured values with their standard errors, one row a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tasks.publish.page.svg import Scale, drawing, element, group, horizontal_axis, text, ticks

WIDTH = 272.0
_NAMES, _RIGHT, _ROW, _TOP, _BOTTOM = 104.0, 10.0, 18.0, 4.0, 36.0
_CHARACTERS = 17
"""What fits before the plot; the tooltip and the table have the whole name."""


@dataclass(frozen=True)
class Estimate:
    """A value and one standard error."""

    name: str
    value: float
    stderr: float
    style: str = "s1"


def estimates_chart(
    estimates: Sequence[Estimate], label: str, axis: str, *, zero: bool = False, digits: int = 3
) -> Markup:
    """Dots with bars of one standard error to either side, in the order given; `zero` draws a line at 0."""
    ends = [e.value + sign * e.stderr for e in estimates for sign in (-1, 1)] + ([0.0] if zero else [])
    low, high = min(ends), max(ends)
    room = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    across = Scale(low - room, high + room, _NAMES, WIDTH - _RIGHT)
    bottom = _TOP + _ROW * len(estimates)
    parts = [
        horizontal_axis(across, bottom, _TOP, ticks(across.low, across.high, 3)),
        text((_NAMES + WIDTH - _RIGHT) / 2, bottom + 31, axis, class_="axis", text_anchor="middle"),
    ]
    if zero:
        parts.append(element("line", x1=across(0), x2=across(0), y1=_TOP, y2=bottom, class_="zero"))
    for index, estimate in enumerate(estimates):
        y = _TOP + _ROW * (index + 0.5)
        parts.append(_row(estimate, across, y, digits))
    return drawing(WIDTH, bottom + _BOTTOM, label, parts)


def _row(estimate: Estimate, across: Scale, y: float, digits: int) -> Markup:
    x = across(estimate.value)
    left, right = across(estimate.value - estimate.stderr), across(estimate.value + estimate.stderr)
    said = f"{estimate.name}: {estimate.value:.{digits}f} ± {estimate.stderr:.{digits}f}"
    name = estimate.name if len(estimate.name) <= _CHARACTERS else estimate.name[: _CHARACTERS - 1] + "…"
    return group(
        [
            element("title", said),
            text(_NAMES - 8, y + 3.5, name, class_=f"name {estimate.style}", text_anchor="end"),
            element("line", x1=left, x2=right, y1=y, y2=y, class_=f"whisker {estimate.style}"),
            *(
                element("line", x1=at, x2=at, y1=y - 4, y2=y + 4, class_=f"whisker {estimate.style}")
                for at in (left, right)
            ),
            element("circle", cx=x, cy=y, r=3.6, class_=f"dot {estimate.style}"),
        ]
    )
