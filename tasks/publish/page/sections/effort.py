"""Time and size of each stage, the lineage with its keys, and all figures of each stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from tasks.artifacts.store import Store
from tasks.planning.quantities import byte_size, money, span
from tasks.publish.page.bars import Bar, bar_chart
from tasks.publish.page.blocks import Details, Figure, Figures, Grid, Listing, Note, Section
from tasks.publish.page.costs import UNKNOWN, cost_usd, endpoint_usd, total_table
from tasks.publish.page.dag import MARKS, anchor
from tasks.publish.page.material import StageRecord
from tasks.publish.tables import MISSING, Table, metrics_rows


def effort_section(records: Sequence[StageRecord]) -> Section:
    """What each finished stage took, and what that cost where its hardware has a price."""
    finished = [record for record in records if record.manifest is not None]
    if not finished:
        return Section("effort", "Time, size and cost", (Note("No stage is finished."),))
    seconds = [Bar(r.label, [(r.seconds or 0, "s1", "")], span(r.seconds or 0)) for r in finished]
    sizes = [Bar(r.label, [(r.num_bytes, "s3", "")], byte_size(r.num_bytes)) for r in finished]
    total, stored = sum(r.seconds or 0 for r in finished), sum(r.num_bytes for r in finished)
    rows = tuple(_effort_row(record) for record in finished)
    columns = (
        "stage",
        "time",
        "launches",
        "processes",
        "threads each",
        "cost",
        "endpoint",
        "objects",
        "size",
        "finished",
    )
    resumed = ", ".join(record.label for record in finished if record.launches > 1)
    note = (
        f"The stages took {'at least ' if resumed else ''}{span(total)} one after another and made "
        f"{byte_size(stored)}. A time is that of the launch that finished the stage"
    )
    note += f"; {resumed} took longer, of which other launches are known." if resumed else "."
    note += (
        " Devices cost time × devices × price of tasks/planning/hardware.yaml, an assumption to edit, and endpoints "
        "what their tokens cost at the prices of the stage's runtime."
    )
    return Section(
        "effort",
        "Time, size and cost",
        (
            Note(note),
            Grid(total_table(finished), "What the finished stages cost together, in USD"),
            Figures(
                (
                    Figure(bar_chart(seconds, "Time of each stage"), "", "Time"),
                    Figure(bar_chart(sizes, "Size of each stage's artifact"), "", "Size"),
                )
            ),
            Grid(Table(columns, rows), "Time, size and cost of each stage", links=True),
        ),
    )


def _effort_row(record: StageRecord) -> tuple[str, ...]:
    assert record.manifest is not None
    provenance = record.manifest.provenance
    cost, paid = cost_usd(provenance), endpoint_usd(record.manifest.metrics)
    processes = int(provenance.runtime.get("num_processes", 1)) * int(provenance.runtime.get("num_nodes", 1))
    return (
        record.label,
        span(provenance.seconds),
        str(record.launches),
        str(processes),
        str(provenance.runtime.get("threads", MISSING)),
        UNKNOWN if cost is None else f"USD {money(cost)}",
        MISSING if paid is None else f"USD {money(paid)}",
        f"{len(record.manifest.objects):,}",
        byte_size(record.num_bytes),
        provenance.created.replace("T", " ").removesuffix("Z"),
    )


def lineage_section(records: Sequence[StageRecord]) -> Section:
    """What each stage is made of, by label, with key and digest."""
    rows = tuple(
        (
            record.label,
            record.stage,
            record.key[:16],
            record.manifest.digest[:16] if record.manifest else MISSING,
            ", ".join(f"{role}: {label}" for role, label in sorted(record.inputs.items())) or MISSING,
        )
        for record in records
    )
    note = (
        "A key names a recipe and is known before anything runs; a digest names the bytes that came of it. Equal keys "
        "are one artifact, whichever run made it."
    )
    table = Table(("step", "stage", "key", "digest", "made of"), rows)
    return Section("lineage", "Lineage and keys", (Note(note), Grid(table, "Every stage and its inputs", links=True)))


def figures_section(records: Sequence[StageRecord], store: Store) -> Section:
    """All figures of each stage, its recipe and its provenance, folded away."""
    return Section("figures", "Figures of each stage", tuple(_details(record, store) for record in records))


def _details(record: StageRecord, store: Store) -> Details:
    sign = MARKS.get(record.state, ("?", ""))[0]
    blocks: list[Any] = [Grid(Table(("", ""), _identity(record, store)), f"{record.label}: what and where")]
    if record.manifest is not None:
        figures = metrics_rows(record.manifest.metrics)
        if figures:
            blocks.append(Grid(Table(("figure", "value"), tuple(figures)), f"{record.label}: figures"))
        recipe = yaml.safe_dump(record.manifest.recipe, sort_keys=False, allow_unicode=True)
        blocks += [Note("Recipe"), Listing(recipe)]
    aside = f"{record.stage} · {sign} {record.state}"
    return Details(record.label, aside, tuple(blocks), anchor(record.label))


def _identity(record: StageRecord, store: Store) -> tuple[tuple[str, str], ...]:
    rows = [
        ("state", f"{record.state}: {record.reason}"),
        ("key", record.key),
        ("place", store.locate(record.directory)),
    ]
    if record.manifest is not None:
        provenance = record.manifest.provenance
        commit = provenance.git_sha or MISSING
        versions = ", ".join(f"{name} {version}" for name, version in provenance.versions.items())
        machine = ", ".join(f"{name} {_listed(value)}" for name, value in provenance.hardware.items())
        rows += [
            ("digest", record.manifest.digest),
            ("version of the stage", str(record.manifest.version)),
            ("finished", provenance.created),
            ("commit", f"{commit} with changes" if provenance.git_dirty else commit),
            ("libraries", versions or MISSING),
            ("machine", machine or MISSING),
        ]
    return tuple(rows)


def _listed(value: Any) -> str:
    return (" + ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
