"""What the stored logits keep of their teachers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from tasks.artifacts.store import Store
from tasks.publish.page.blocks import Figure, Figures, Grid, Note, Section
from tasks.publish.page.lines import Curve, line_chart
from tasks.publish.page.material import StageRecord, captured_histogram, of_stage
from tasks.publish.report import logits_table

_STYLES = ("s1", "s2", "s3", "s4", "s5")


def logits_sections(records: Sequence[StageRecord], store: Store) -> list[Section]:
    """One section for all logit stores; none if there is none."""
    stores = of_stage(records, "dump_logits", "import_logits")
    if not stores:
        return []
    curves, sampled = [], []
    for index, record in enumerate(stores):
        bins, num_read, num_shards = captured_histogram(store, record)
        total = sum(bins)
        if total:
            width = 1 / len(bins)
            shares = [100 * count / total for count in accumulate(bins)]
            points = [(0.0, 0.0), *((width * (bin_ + 1), share) for bin_, share in enumerate(shares))]
            curves.append(Curve(record.label, _STYLES[index % len(_STYLES)], _from_the_first(points)))
        if num_read < num_shards:
            sampled.append(f"{record.label}: {num_read} of {num_shards} shards were read for the curve.")
    table = logits_table({record.label: record.manifest for record in stores if record.manifest is not None})
    chart = line_chart(curves, "Share of positions by captured mass", "captured mass of a position", from_zero=True)
    figures = []
    if chart is not None:
        legend = tuple((f"stroke {curve.style}", curve.name) for curve in curves)
        caption = "% of positions whose kept entries carry at most this probability: the more to the right, the better"
        figures = [Figures((Figure(chart, caption, "Captured mass", legend),), small=True)]
    note = (
        "A position keeps some entries of its teacher's distribution, and the mass of all others as one number. "
        "Captured mass is the probability that the kept entries carry."
    )
    return [
        Section(
            "logits",
            "Stored logits",
            (Note(note), Grid(table, "Logit stores", links=True), *figures, *(Note(line) for line in sampled)),
        )
    ]


def _from_the_first(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Without the stretch at the start in which there is no position."""
    first = next((index for index, (_, share) in enumerate(points) if share > 0), 1)
    return list(points[max(0, first - 1) :])
