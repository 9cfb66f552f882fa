"""A worker's metrics as a page for the dashboard: one small chart each, with its last value.

Prefect's dashboard has no charts, but shows the images of a markdown artifact, and a data URL is an image that needs no
server. Both of its user interfaces render it.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard
from xml.sax.saxutils import escape

MOST_POINTS = 200
"""Of one curve: more than its picture has pixels to tell apart, and 1.5 kB of SVG."""
MOST_CURVES = 12
_COLUMNS = 3
_WIDTH, _HEIGHT = 300, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 10, 290, 50, 140
"""Of the plot within its panel."""


@dataclass
class Curve:
    """Points in bounded memory: means over ever longer stretches, of equal length along the curve."""

    points: list[tuple[float, float]] = field(default_factory=list)
    last: float = math.nan
    steps: tuple[float, float] = (math.nan, math.nan)
    """The first and the last."""
    _stretch: int = 1
    _pending: list[tuple[float, float]] = field(default_factory=list)

    def add(self, step: float, value: float) -> None:
        """Takes in the next point."""
        self.last = value
        self.steps = (step if math.isnan(self.steps[0]) else self.steps[0], step)
        self._pending.append((step, value))
        if len(self._pending) < self._stretch:
            return
        self.points.append(_mean(self._pending))
        self._pending = []
        if len(self.points) == MOST_POINTS:
            self.points = [_mean(self.points[place : place + 2]) for place in range(0, MOST_POINTS, 2)]
            self._stretch *= 2

    def drawn(self) -> list[tuple[float, float]]:
        """All points, the unfinished stretch as its mean so far."""
        return [*self.points, _mean(self._pending)] if self._pending else self.points


def _mean(points: list[tuple[float, float]]) -> tuple[float, float]:
    steps, values = zip(*points, strict=True)
    return sum(steps) / len(points), sum(values) / len(points)


class Curves:
    """All metrics of one stage."""

    def __init__(self) -> None:
        self.curves: dict[str, Curve] = {}

    def add(self, values: Mapping[str, Any]) -> None:
        """Takes in a metric event: {"step": 10, "loss": 2.3, …}. What is no finite number is left out."""
        step = values.get("step")
        if not _is_number(step):
            return
        for name, value in values.items():
            if name == "step" or not _is_number(value):
                continue
            if name in self.curves or len(self.curves) < MOST_CURVES:
                self.curves.setdefault(name, Curve()).add(step, value)

    def markdown(self) -> str:
        """The page."""
        image = base64.b64encode(self.svg().encode()).decode()
        return f"![{', '.join(self.curves)}](data:image/svg+xml;base64,{image})\n"

    def svg(self) -> str:
        """The charts, three in a row, in the order in which the metrics first came."""
        rows = -(-len(self.curves) // _COLUMNS)
        width, height = _COLUMNS * _WIDTH, rows * _HEIGHT
        panels = []
        for index, (name, curve) in enumerate(self.curves.items()):
            row, column = divmod(index, _COLUMNS)
            panels.append(f'<g transform="translate({column * _WIDTH},{row * _HEIGHT})">{_panel(name, curve)}</g>')
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'font-family="sans-serif" font-size="14" fill="#444"><rect width="100%" height="100%" fill="#fff"/>'
            f"{''.join(panels)}</svg>"
        )


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _panel(name: str, curve: Curve) -> str:
    points = curve.drawn()
    left, right = curve.steps
    low, high = min(value for _, value in points), max(value for _, value in points)

    def place(value: float, start: float, end: float, first: int, last: int) -> int:
        share = (value - start) / (end - start) if end > start else 0.5
        return round(first + share * (last - first))

    line = " ".join(
        f"{place(step, left, right, _LEFT, _RIGHT)},{place(value, low, high, _BOTTOM, _TOP)}" for step, value in points
    )
    end = line.rpartition(" ")[2].partition(",")
    title = escape(name.replace("_", " "))
    return (
        f'<text x="{_LEFT}" y="22" font-size="17" fill="#111">{title}</text>'
        f'<text x="{_RIGHT}" y="22" font-size="17" fill="#111" text-anchor="end">{_number(curve.last)}</text>'
        f'<path d="M{_LEFT} {_TOP}H{_RIGHT}M{_LEFT} {_BOTTOM}H{_RIGHT}" stroke="#ddd"/>'
        f'<text x="{_LEFT}" y="{_TOP - 6}" font-size="12">{_number(high)}</text>'
        f'<text x="{_LEFT}" y="{_BOTTOM + 16}" font-size="12">{_number(low)}</text>'
        f'<text x="{_RIGHT}" y="{_BOTTOM + 16}" font-size="12" text-anchor="end">'
        f"step {left:,.0f} to {right:,.0f}</text>"
        f'<polyline points="{line}" fill="none" stroke="#1860f2" stroke-width="2"/>'
        f'<circle cx="{end[0]}" cy="{end[2]}" r="4" fill="#1860f2"/>'
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
