"""A picture of a logit store: how much mass its positions capture, with how many entries, and where its bytes go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from tasks.logits.survey import Survey

MAX_BINS = 64
BLUE, DARK = "#4878a8", "#203040"


def plot(found: Survey, title: str, target: Path) -> None:
    """Writes a PNG of three panels. Figures are drawn by Agg, without a display or any state of pyplot."""
    figure = Figure(figsize=(15, 4.8), layout=ConstrainedLayoutEngine(w_pad=0.12, wspace=0.02))
    figure.suptitle(title, fontsize=12)
    captured, entries, sizes = figure.subplots(1, 3)
    _distribution(captured, found.captured_P, np.linspace(0, 1, 51))
    captured.set_title(f"captured mass, {len(found.captured_P):,} positions of {found.num_rows} rows ({found.split})")
    captured.set_xlabel("probability that a position's entries carry")
    captured.set_xlim(0, 1)
    most = int(found.entries_P.max(initial=1))
    # As many whole numbers in each bin, or the bins that hold one more would stand out.
    step = most // MAX_BINS + 1
    _distribution(entries, found.entries_P, np.arange(-0.5, most + step + 0.5, step))
    entries.set_title("entries a position")
    entries.set_xlabel("number of entries")
    entries.set_xlim(-0.5, most + 0.5)
    _sizes(sizes, found)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


def _distribution(axes: Axes, values: np.ndarray, edges: np.ndarray) -> None:
    """Share of the positions in each bin, and the share at or below each value."""
    count = max(len(values), 1)
    axes.hist(values, bins=edges.tolist(), weights=np.full(len(values), 100 / count), color=BLUE)
    axes.set_ylabel("positions in a bin (%)", color=BLUE)
    axes.tick_params(axis="y", colors=BLUE)
    summed = axes.twinx()
    summed.step(np.sort(values), 100 * np.arange(1, len(values) + 1) / count, where="post", color=DARK, linewidth=1.4)
    summed.set_ylim(0, 101)
    summed.set_ylabel("positions at or below (%)", color=DARK)


def _sizes(axes: Axes, found: Survey) -> None:
    tokens = max(found.num_tokens, 1)
    names = list(found.bytes_of_part)
    values = [found.bytes_of_part[name] / tokens for name in names]
    bars = axes.barh(names, values, color=BLUE)
    axes.bar_label(bars, labels=[f"{value:.2f}" for value in values], padding=3, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, max(values) * 1.18 or 1)
    axes.set_xlabel("bytes a token")
    axes.set_title(f"bytes a token by part, {found.bytes_per_token:.1f} in all")
