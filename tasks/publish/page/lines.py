"""Curves over steps in one small frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tasks.publish.page.svg import Scale, drawing, element, group, horizontal_axis, path, text, ticks, vertical_axis

WIDTH, HEIGHT = 272.0, 178.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 8.0, 8.0, 36.0
MAX_DRAWN = 600
"""Points of one curve: more than there are pixels would only make the page large."""
_MAX_DOTS = 24


@dataclass(frozen=True)
class Curve:
    """A named series. `style` is a class of page.css, such as "s1" or "s2 dashed"."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]


def line_chart(curves: Sequence[Curve], label: str, x_name: str = "step", *, from_zero: bool = False) -> Markup | None:
    """The curves over one pair of axes; None if no curve has a finite point.

    The last value of each curve stands in a tooltip and, by the caller, in a table.
    """
    kept = [Curve(curve.name, curve.style, thinned(_finite(curve.points))) for curve in curves]
    kept = [curve for curve in kept if curve.points]
    if not kept:
        return None
    xs = [x for curve in kept for x, _ in curve.points]
    ys = [y for curve in kept for _, y in curve.points]
    low, high = (0.0 if from_zero else min(ys)), max(ys)
    # A flat curve has a range of its own, or its line would lie on the frame.
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    across = Scale(min(xs), max(xs), _LEFT, WIDTH - _RIGHT)
    up = Scale(low if from_zero else low - room, high + room, HEIGHT - _BOTTOM, _TOP)
    parts = [
        vertical_axis(up, _LEFT, WIDTH - _RIGHT, ticks(up.low, up.high)),
        horizontal_axis(
            across, HEIGHT - _BOTTOM, HEIGHT - _BOTTOM, ticks(across.low, across.high, whole=x_name == "step")
        ),
        text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 6, x_name, class_="axis", text_anchor="middle"),
    ]
    parts += [_curve(curve, across, up) for curve in kept]
    return drawing(WIDTH, HEIGHT, label, parts)


def _curve(curve: Curve, across: Scale, up: Scale) -> Markup:
    placed = [(across(x), up(y)) for x, y in curve.points]
    tooltip = element("title", f"{curve.name}: {curve.points[-1][1]:.4g} at {curve.points[-1][0]:g}")
    parts = [tooltip, path(placed, class_=f"line {curve.style}")]
    if len(placed) <= _MAX_DOTS:
        parts += [element("circle", cx=x, cy=y, r=2.2, class_=f"dot {curve.style}") for x, y in placed]
    return group(parts)


def thinned(points: Sequence[tuple[float, float]], most: int = MAX_DRAWN) -> list[tuple[float, float]]:
    """At most about `most` points: of each stretch its smallest and its largest value, so that a spike stays."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    kept = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        ends = {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
        kept += sorted(ends)
    return [points[0], *kept, points[-1]]


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
