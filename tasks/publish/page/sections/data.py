"""Where the training data came from, and what was left out on the way, with its reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.artifacts.store import Store
from tasks.publish.page.bars import Bar, bar_chart
from tasks.publish.page.blocks import Figure, Figures, Grid, Note, Section
from tasks.publish.page.material import StageRecord, object_json, of_stage
from tasks.publish.tables import MISSING, Table

CleanStep = tuple[str, int, int]
"""Name, rows removed, rows left."""
_CLEAN_REPORT, _EVOLVE_REPORT = "clean.json", "evolve.json"
_REJECTED = ("unparsed", "unchanged", "refused", "truncated", "errored", "failed")


def data_sections(records: Sequence[StageRecord], store: Store) -> list[Section]:
    """One section for corpora and instructions, evolved and cleaned; none if nothing is finished."""
    corpora, evolved, cleaned = (of_stage(records, stage) for stage in ("corpus", "evolve", "clean"))
    figures = [figure for record in evolved if (figure := _evolve_funnel(record)) is not None]
    steps = {record.label: _clean_steps(record, store) for record in cleaned}
    figures += [figure for record in cleaned if (figure := _clean_funnel(record, steps[record.label])) is not None]
    figures += [figure for record in corpora if (figure := _corpus_funnel(record)) is not None]
    blocks: list[Any] = [Figures(tuple(figures))] if figures else []
    if evolved:
        blocks.append(Grid(_evolve_table(evolved), "Instructions", links=True))
        rejected = _rejected_table(evolved)
        if rejected.rows:
            blocks.append(Grid(rejected, "Seeds and exercises that became no instruction, and why", links=True))
        told = [(record, object_json(store, record, _EVOLVE_REPORT) or {}) for record in evolved]
        search = _search_table(told)
        if search.rows:
            blocks.append(
                Grid(search, "The search for an evolving method: failure rates on its development seeds", True)
            )
            blocks.append(Note("The best of several methods on the same seeds is partly lucky."))
        blocks += [Note(served) for record, report in told if (served := _served_otherwise(record, report))]
    if cleaned:
        blocks.append(Grid(_cleaning_table(steps), "Cleaning, in the order of its steps", links=True))
    overlap = _overlap_table([*cleaned, *corpora])
    if cleaned or overlap.rows:
        blocks.append(Grid(overlap, "Instructions and documents against each evaluation set", links=True))
    if corpora:
        blocks.append(Grid(_corpus_table(corpora), "Corpora by split", links=True))
        sources = _sources_table(corpora)
        if sources.rows:
            blocks.append(Grid(sources, "Rows by source", links=True))
        dropped = _dropped_table(corpora)
        what = (
            Grid(dropped, "What was left out, and why", links=True) if dropped.rows else Note("Nothing was left out.")
        )
        blocks.append(what)
    return [Section("data", "Data", tuple(blocks))] if blocks else []


def _evolve_funnel(record: StageRecord) -> Figure | None:
    metrics = record.manifest.metrics if record.manifest else {}
    offered, kept = metrics.get("seeds"), metrics.get("answered")
    if not offered:
        return None
    rejected = _rejected(metrics)
    bars = [Bar("offered", [(offered, "s1", "")], f"{offered:,}")]
    if metrics.get("evolved"):
        bars.append(Bar("evolved", [(metrics["evolved"], "s1", "")], f"{metrics['evolved']:,}"))
    bars += [Bar(f"− {reason}", [(count, "s2", "")], f"{count:,}") for reason, count in rejected]
    bars.append(Bar("answered and kept", [(kept or 0, "good", "")], f"{kept or 0:,}"))
    return Figure(bar_chart(bars, f"From seeds to instructions in {record.label}"), _share(kept, offered), record.label)


def _clean_steps(record: StageRecord, store: Store) -> list[CleanStep]:
    """In the order in which rows pass, which the manifest, sorted by name, does not have."""
    report = object_json(store, record, _CLEAN_REPORT) or {}
    return [(step["name"].replace("_", " "), step["removed"], step["left"]) for step in report.get("steps", ())]


def _clean_funnel(record: StageRecord, steps: Sequence[CleanStep]) -> Figure | None:
    offered = (record.manifest.metrics if record.manifest else {}).get("offered")
    if not offered or not steps:
        return None
    bars = [Bar("offered", [(offered, "s1", "")], f"{offered:,}")]
    for name, removed, left in steps:
        told = f"{left:,}" + (f" (−{removed:,})" if removed else "")
        bars.append(Bar(name, [(left, "s1", "left"), (removed, "s2", "removed")], told))
    bars.append(Bar("kept", [(steps[-1][2], "good", "")], f"{steps[-1][2]:,}"))
    caption = "what each step left, and in another colour what it removed"
    return Figure(bar_chart(bars, f"What each step of {record.label} left"), caption, record.label)


def _corpus_funnel(record: StageRecord) -> Figure | None:
    metrics = record.manifest.metrics if record.manifest else {}
    train, heldout = metrics.get("train_rows"), metrics.get("heldout_rows")
    if train is None:
        return None
    dropped: Mapping[str, int] = metrics.get("dropped") or {}
    bars = [
        Bar(f"− {reason.replace('_', ' ')}", [(count, "s2", "")], f"{count:,}") for reason, count in dropped.items()
    ]
    bars.append(Bar("held out", [(heldout or 0, "s4", "")], f"{heldout or 0:,} rows"))
    bars.append(Bar("trained on", [(train, "good", "")], f"{train:,} rows"))
    caption = "documents or rows left out, by reason, and the rows that remain"
    return Figure(bar_chart(bars, f"What became of the documents of {record.label}"), caption, record.label)


def _share(kept: Any, offered: int) -> str:
    return f"{100 * (kept or 0) / offered:.0f} % of what was offered became instructions"


def _evolve_table(evolved: Sequence[StageRecord]) -> Table:
    rows = []
    for record in evolved:
        metrics = record.manifest.metrics if record.manifest else {}
        names = ("seeds", "evolved", "answered", "calls", "prompt_tokens", "completion_tokens")
        rows.append((record.label, str(metrics.get("source", MISSING)), *(_count(metrics.get(name)) for name in names)))
    columns = ("stage", "source", "offered", "evolved", "answered", "calls", "prompt tokens", "completion tokens")
    return Table(columns, tuple(rows))


def _search_table(told: Sequence[tuple[StageRecord, Mapping[str, Any]]]) -> Table:
    """The rounds of evolve.json's `method_history`."""
    rows = [
        (
            record.label,
            str(entry["round"] + 1),
            _share_of_one(entry["failure_rate_before"]),
            " ".join(map(_share_of_one, entry["proposals"].values())) or MISSING,
            _share_of_one(entry["failure_rate_after"]),
            "changed" if entry["method_after"] != entry["method_before"] else "kept",
            "read" if entry["analysed"] else "unreadable",
            f"{entry['unreadable_proposals']:,}",
            f"{entry['unreadable_verdicts']:,}",
        )
        for record, report in told
        for entry in report.get("method_history", ())
    ]
    columns = (
        "stage",
        "round",
        "before",
        "proposals",
        "after",
        "method",
        "analysis",
        "unreadable proposals",
        "verdicts",
    )
    return Table(columns, tuple(rows))


def _share_of_one(value: float) -> str:
    return f"{value:.2f}"


def _served_otherwise(record: StageRecord, report: Mapping[str, Any]) -> str | None:
    """That other models answered than those whose licences the recipe's names stand for."""
    source: Mapping[str, Any] = (record.manifest.recipe.get("source") if record.manifest else None) or {}
    roles = ("evolver", "optimiser", "answerer", "judge")
    named = {role["model"] for each in roles if isinstance(role := source.get(each), Mapping)}
    served = set(report.get("served_models", ()))
    if not served - named:
        return None
    return (
        f"{record.label} names {', '.join(sorted(named))}, and the endpoint says that {', '.join(sorted(served))} "
        f"answered; licences are those of the names."
    )


def _rejected(metrics: Mapping[str, Any]) -> list[tuple[str, int]]:
    return [(reason, metrics[reason]) for reason in ("duplicates", *_REJECTED) if metrics.get(reason)]


def _rejected_table(evolved: Sequence[StageRecord]) -> Table:
    rows = [
        (record.label, reason, f"{count:,}")
        for record in evolved
        for reason, count in _rejected(record.manifest.metrics if record.manifest else {})
    ]
    return Table(("stage", "reason", "number"), tuple(rows))


def _cleaning_table(steps: Mapping[str, Sequence[CleanStep]]) -> Table:
    rows = [
        (label, step, f"{removed:,}", f"{left:,}") for label, taken in steps.items() for step, removed, left in taken
    ]
    return Table(("stage", "step", "removed", "left"), tuple(rows))


def _overlap_table(compared: Sequence[StageRecord]) -> Table:
    """The numbers of `evaluations`: what was compared, and what was found."""
    told = [
        (record.label, name, {column: value for column, value in counts.items() if isinstance(value, int)})
        for record in compared
        for name, counts in _evaluations(record).items()
    ]
    columns = tuple(dict.fromkeys(column for _, _, counts in told for column in counts))
    rows = tuple((label, name, *(_count(counts.get(column)) for column in columns)) for label, name, counts in told)
    return Table(("stage", "evaluation set", *(column.replace("_", " ") for column in columns)), rows)


def _evaluations(record: StageRecord) -> Mapping[str, Any]:
    """Of each evaluation set what a cleaning or a corpus counted; empty where nothing was compared."""
    metrics = record.manifest.metrics if record.manifest else {}
    evaluations: Mapping[str, Any] = (metrics.get("decontamination") or metrics).get("evaluations") or {}
    return evaluations


def _corpus_table(corpora: Sequence[StageRecord]) -> Table:
    rows = []
    for record in corpora:
        metrics = record.manifest.metrics if record.manifest else {}
        for split, said in (("train", "training"), ("heldout", "held out")):
            if f"{split}_rows" in metrics:
                counts = (metrics.get(f"{split}_{name}") for name in ("rows", "tokens", "targets", "bytes"))
                rows.append((record.label, said, *(_count(count) for count in counts)))
    return Table(("corpus", "split", "rows", "tokens", "targets", "bytes of text"), tuple(rows))


def _sources_table(corpora: Sequence[StageRecord]) -> Table:
    rows = []
    for record in corpora:
        by_split = (record.manifest.metrics if record.manifest else {}).get("rows_by_source") or {}
        train, heldout = by_split.get("train") or {}, by_split.get("heldout") or {}
        for source in dict.fromkeys((*train, *heldout)):
            rows.append((record.label, source, _count(train.get(source, 0)), _count(heldout.get(source, 0))))
    return Table(("corpus", "source", "training", "held out"), tuple(rows))


def _dropped_table(corpora: Sequence[StageRecord]) -> Table:
    rows = [
        (record.label, reason.replace("_", " "), _count(count))
        for record in corpora
        for reason, count in ((record.manifest.metrics if record.manifest else {}).get("dropped") or {}).items()
    ]
    return Table(("corpus", "reason", "number"), tuple(rows))


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else MISSING
