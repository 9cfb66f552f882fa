"""The funnel: how many rows came in, what each step took, and what is left; as JSON and as a picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from tasks.clean.filters import Judge, Why
from tasks.clean.rows import Row

NUM_EXAMPLES = 5
_BLUE, _RED, _DARK = "#4878a8", "#c03030", "#203040"


@dataclass
class FunnelStep:
    """One step: rows in, rows removed, rows left, and the first rows that it removed."""

    name: str
    rows_in: int = 0
    removed: int = 0
    examples: list[Why] = field(default_factory=list)
    """Each with the row's `id` and what spoke against it; at most NUM_EXAMPLES."""

    @property
    def left(self) -> int:
        return self.rows_in - self.removed

    def keeps(self, row: Row, judge: Judge) -> bool:
        """Counts the row and says whether it stays."""
        self.rows_in += 1
        why = judge(row)
        if why is not None:
            self.removed += 1
            if len(self.examples) < NUM_EXAMPLES:
                self.examples.append({"id": row.id, **why})
        return why is None

    def record(self) -> dict[str, Any]:
        """As it stands in clean.json."""
        return {**asdict(self), "left": self.left}


def plot_funnel(offered: int, steps: list[FunnelStep], target: Path) -> None:
    """Writes a PNG or SVG, by the suffix: a bar for what came in and one for what each step left."""
    names = ["came in", *(step.name.replace("_", " ") for step in steps)]
    left, removed = [offered, *(step.left for step in steps)], [0, *(step.removed for step in steps)]
    figure = Figure(figsize=(8, 0.9 + 0.42 * len(names)), layout=ConstrainedLayoutEngine(w_pad=0.1))
    axes = figure.subplots()
    places = range(len(names))
    axes.barh(places, left, color=_BLUE, height=0.62)
    axes.barh(places, removed, left=left, color=_RED, height=0.62)
    # A removed share under a pixel's width is still a number beside the bar.
    for place in places:
        said = f"{left[place]:,}" + (f"   − {removed[place]:,}" if removed[place] else "")
        axes.text(left[place] + removed[place] + 0.01 * max(offered, 1), place, said, va="center", color=_DARK)
    axes.set_yticks(places, labels=names)
    axes.set_xlim(0, 1.22 * max(offered, 1))
    axes.invert_yaxis()
    axes.set_xlabel("rows (red: removed by this step)")
    axes.spines[["top", "right"]].set_visible(False)
    # Without date and version, and with ids that are hashes of what they name, equal numbers give equal bytes.
    metadata = {"Date": None, "Creator": None} if target.suffix == ".svg" else {"Software": None}
    with rc_context({"svg.hashsalt": "clean"}):
        figure.savefig(target, dpi=110, metadata=metadata)
