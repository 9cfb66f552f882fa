"""A picture of a comparison: held-out bits per byte, the kinds of text against the reference, and arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

BLUE, DARK, GREY, RED = "#4878a8", "#203040", "#9aa4ae", "#c03030"
_KINDS = {
    "prose": ("o", "#203040"),
    "code": ("s", "#d08a20"),
    "digits": ("D", "#7a4fa3"),
    "non_latin": ("^", "#2e8b57"),
}


def plot(results: Mapping[str, Any], names: Sequence[str], taken: str | None, title: str, target: Path) -> None:
    """Writes a PNG or SVG, by the suffix. Models stand in the order of `names`; what was not measured is left out."""
    names = [name for name in names if results["models"][name]["fault"] is None]
    figure = Figure(figsize=(14, 2.2 + 0.28 * len(names)), layout=ConstrainedLayoutEngine(w_pad=0.1, wspace=0.03))
    figure.suptitle(f"{title} (red: chosen, grey: reference)", fontsize=12)
    heldout, kinds, arithmetic = figure.subplots(1, 3, sharey=True)
    models = [results["models"][name] for name in names]
    colours = [RED if name == taken else GREY if name == results["reference"] else BLUE for name in names]
    _dots(heldout, [model["bits_per_byte"]["heldout"] for model in models], colours)
    heldout.set_xlabel("bits per byte on held-out texts, ± 1 s.e.")
    _dots(arithmetic, [model["arithmetic"] for model in models], colours)
    # Where nothing is answered a share has no range of its own.
    highest = max(model["arithmetic"]["value"] + model["arithmetic"]["stderr"] for model in models)
    arithmetic.set_xlim(-0.02 * max(highest, 0.1), 1.05 * max(highest, 0.1))
    arithmetic.set_xlabel("share of sums answered, ± 1 s.e.")
    _ratios(kinds, models, results["models"][results["reference"]])
    heldout.set_yticks(range(len(names)), labels=list(names))
    for label, colour in zip(heldout.get_yticklabels(), colours, strict=True):
        label.set_color(colour if colour == RED else DARK)
    # The axes share their y.
    heldout.invert_yaxis()
    _save(figure, (heldout, kinds, arithmetic), target)


def plot_arms(results: Mapping[str, Any], names: Sequence[str], marked: str, title: str, target: Path) -> None:
    """Bits per byte and accuracy of an evaluation's models, in the order of `names`; writes a PNG or SVG."""
    figure = Figure(figsize=(11, 2.2 + 0.28 * len(names)), layout=ConstrainedLayoutEngine(w_pad=0.1, wspace=0.03))
    figure.suptitle(f"{title} (red: the full recipe, grey: untrained)", fontsize=12)
    models = [results["models"][name] for name in names]
    colours = [RED if name == marked else GREY if name == results["reference"] else BLUE for name in names]
    shown = [key for key in ("bits_per_byte", "accuracy") if key in models[0]]
    columns = list(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0])
    for axes, key in zip(columns, shown, strict=True):
        _dots(axes, [model[key] for model in models], colours)
        axes.set_xlabel(f"{key.replace('_', ' ')}, ± 1 s.e.")
    columns[0].set_yticks(range(len(names)), labels=list(names))
    # The axes share their y.
    columns[0].invert_yaxis()
    _save(figure, columns, target)


def _save(figure: Figure, columns: Sequence[Axes], target: Path) -> None:
    for axes in columns:
        axes.grid(axis="both", color="#e4e8ec", linewidth=0.8)
        axes.set_axisbelow(True)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Without a date, and with ids that are hashes of what they name, equal numbers give equal bytes.
    with rc_context({"svg.hashsalt": "compare"}):
        figure.savefig(target, dpi=110, metadata={"Date": None} if target.suffix == ".svg" else None)


def _dots(axes: Axes, estimates: Sequence[Mapping[str, Any]], colours: Sequence[str]) -> None:
    for at, (estimate, colour) in enumerate(zip(estimates, colours, strict=True)):
        axes.errorbar(estimate["value"], at, xerr=estimate["stderr"], fmt="o", color=colour, capsize=3)


def _ratios(axes: Axes, models: Sequence[Mapping[str, Any]], reference: Mapping[str, Any]) -> None:
    """Bits per byte of each kind of text over the reference's."""
    before = reference["bits_per_byte"] if reference["fault"] is None else None
    for kind, (marker, colour) in _KINDS.items():
        own = [model["bits_per_byte"][kind]["value"] for model in models]
        shown = [value / before[kind]["value"] for value in own] if before is not None else own
        label = kind.replace("_", "-")
        axes.plot(shown, range(len(models)), marker, color=colour, label=label, alpha=0.85, markersize=5)
    if before is not None:
        axes.axvline(1, color=DARK, linewidth=1)
        axes.set_xlabel("bits per byte by kind of text, over the reference's")
    else:
        axes.set_xlabel("bits per byte by kind of text")
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, 1.0 + 0.9 / (1 + len(models))), ncols=4, fontsize=8, frameon=False
    )
