"""Handwritten SVG: elements that escape what is put into them, axes with round ticks, numbers without noise.

Colours and fonts come from page.css through classes, so that one drawing serves light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup


def element(name: str, content: object = None, **attributes: object) -> Markup:
    """`<name a="b">content</name>`; an attribute `class_` is `class`, `text_anchor` is `text-anchor`.

    Text and attributes are escaped; content that is Markup is taken as it is. Attributes that are None are left out.
    """
    told = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _short(value))
        for key, value in attributes.items()
        if value is not None
    )
    opening = Markup("<{}{}").format(Markup(name), told)
    return opening + Markup("/>") if content is None else opening + Markup(">{}</{}>").format(content, Markup(name))


def group(parts: Iterable[Markup], **attributes: object) -> Markup:
    """Elements in one `<g>`."""
    return element("g", Markup("").join(parts), **attributes)


def drawing(width: float, height: float, label: str, parts: Iterable[Markup]) -> Markup:
    """A whole drawing. `label` says in words what it shows."""
    return element(
        "svg",
        Markup("").join(parts),
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
        role="img",
        aria_label=label,
    )


def text(x: float, y: float, content: str, **attributes: object) -> Markup:
    """One line of text."""
    return element("text", content, x=x, y=y, **attributes)


def path(points: Iterable[tuple[float, float]], **attributes: object) -> Markup:
    """A line through points."""
    told = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return element("path", d=f"M{told}", **attributes)


@dataclass(frozen=True)
class Scale:
    """A linear map of [low, high] to [start, end]; low == high lies in the middle."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        if self.high <= self.low:
            return (self.start + self.end) / 2
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, number: int = 4, *, whole: bool = False) -> list[float]:
    """About `number` round values within [low, high], of whole numbers only whole ones."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low] if math.isfinite(low) else []
    power = 10.0 ** math.floor(math.log10((high - low) / number))
    found: list[float] = []
    for factor in (10, 5, 2, 1):
        step = power * factor
        if whole and step < 1:
            break
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        found = [round(index * step, 12) for index in range(first, last + 1)]
        if len(found) >= max(2, number - 1):
            break
    return found


def tick_label(value: float) -> str:
    """A tick's value: `1,200`, `0.25`, `2e-05`."""
    if value and (abs(value) >= 1e6 or abs(value) < 1e-4):
        return f"{value:.3g}"
    return f"{value:,.6g}" if abs(value) < 1000 else f"{value:,.0f}"


def horizontal_axis(scale: Scale, y: float, top: float, values: Sequence[float]) -> Markup:
    """Grid lines from `top` to `y`, and their values below."""
    parts = []
    for value in values:
        x = scale(value)
        parts.append(element("line", x1=x, x2=x, y1=top, y2=y, class_="rule"))
        parts.append(text(x, y + 14, tick_label(value), class_="tick", text_anchor="middle"))
    return group(parts)


def vertical_axis(scale: Scale, x: float, right: float, values: Sequence[float]) -> Markup:
    """Grid lines from `x` to `right`, and their values before them."""
    parts = []
    for value in values:
        y = scale(value)
        parts.append(element("line", x1=x, x2=right, y1=y, y2=y, class_="rule"))
        parts.append(text(x - 6, y + 3.5, tick_label(value), class_="tick", text_anchor="end"))
    return group(parts)


def _short(value: object) -> object:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value
