"""The DAG of a run: a box a stage with its state, time and size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from tasks.planning.quantities import byte_size, span
from tasks.publish.page.layers import lay_out
from tasks.publish.page.material import StageRecord
from tasks.publish.page.svg import drawing, element, group, text

_WIDTH, _HEIGHT, _ACROSS, _DOWN, _MARGIN = 156.0, 40.0, 172.0, 68.0, 8.0
_CHARACTERS = 20
MARKS = {
    "finished": ("✓", "good"),
    "gate failed": ("✕", "bad"),
    "stale": ("↻", "warn"),
    "working": ("▸", "busy"),
    "started": ("◐", "busy"),
    "missing": ("○", "idle"),
}
"""By state of a stage: a sign, so that no one has to tell colours apart, and a class of page.css."""


def dag_figure(records: Sequence[StageRecord]) -> tuple[Markup, tuple[tuple[str, str], ...]]:
    """The drawing, and the legend of the states that occur."""
    known = {record.label for record in records}
    layout = lay_out(
        [record.label for record in records],
        {record.label: [source for source in record.inputs.values() if source in known] for record in records},
    )

    def at(place: tuple[float, int]) -> tuple[float, float]:
        return _MARGIN + place[0] * _ACROSS + _WIDTH / 2, _MARGIN + place[1] * _DOWN + _HEIGHT / 2

    parts = [_line([at(place) for place in places], edge) for edge, places in layout.lines.items()]
    parts += [_box(record, *at(layout.places[record.label])) for record in records]
    width = 2 * _MARGIN + (layout.width - 1) * _ACROSS + _WIDTH
    height = 2 * _MARGIN + max(0, layout.num_layers - 1) * _DOWN + _HEIGHT
    finished = sum(record.state == "finished" for record in records)
    label = f"The stages as a graph, inputs above what uses them; {finished} of {len(records)} are finished"
    states = [state for state in MARKS if any(record.state == state for record in records)]
    return drawing(width, height, label, parts), tuple((f"mark {MARKS[s][1]}", f"{MARKS[s][0]} {s}") for s in states)


def anchor(label: str) -> str:
    """Where a stage's figures stand on the page."""
    return f"stage-{label}"


def _line(points: Sequence[tuple[float, float]], edge: tuple[str, str]) -> Markup:
    """From the lower edge of the source to the upper edge of the target, straight through the layers in between."""
    half = _HEIGHT / 2
    (x, y), told = points[0], ""
    told = f"M{x:.1f} {y + half:.1f}"
    y += half
    for index, (next_x, middle) in enumerate(points[1:], 1):
        arrives = middle - half
        bend = (arrives - y) / 2
        told += f"C{x:.1f} {y + bend:.1f} {next_x:.1f} {arrives - bend:.1f} {next_x:.1f} {arrives:.1f}"
        x, y = next_x, arrives
        if index < len(points) - 1:
            y = middle + half
            told += f"L{x:.1f} {y:.1f}"
    return element("path", element("title", f"{edge[0]} → {edge[1]}"), d=told, class_="edge")


def _box(record: StageRecord, x: float, y: float) -> Markup:
    sign, style = MARKS.get(record.state, ("?", "idle"))
    left, top = x - _WIDTH / 2, y - _HEIGHT / 2
    shown = record.label if len(record.label) <= _CHARACTERS else record.label[: _CHARACTERS - 1] + "…"
    below: str = record.state
    if record.seconds is not None:
        below = f"{span(record.seconds)} · {byte_size(record.num_bytes)}"
    attributes: dict[str, Any] = {"href": f"#{anchor(record.label)}"}
    content = group(
        [
            element("title", f"{record.label}: {record.state}, {record.reason}"),
            element("rect", x=left, y=top, width=_WIDTH, height=_HEIGHT, rx=5, class_=f"box {style}"),
            element("rect", x=left, y=top + 6, width=3, height=_HEIGHT - 12, class_=f"fill {style}"),
            text(left + 11, top + 17, shown, class_="label"),
            text(left + 11, top + 32, below, class_="tick"),
            text(left + _WIDTH - 9, top + 33, sign, class_=f"sign {style}", text_anchor="end"),
        ]
    )
    return element("a", content, **attributes)
