"""Changes of vocabulary, and the fusion: what they were made of, and bits per byte before and after."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.artifacts.store import Store
from tasks.publish.page.bars import Bar, bar_chart
from tasks.publish.page.blocks import Figure, Grid, Note, Section
from tasks.publish.page.material import SURGERY_RECORD, StageRecord, object_json, of_stage
from tasks.publish.steps import setting_text
from tasks.publish.tables import MISSING, Table, number

_PARTS = {
    "shared": ("s1", "copied from the student's row of the same bytes"),
    "mapped": ("s4", "copied as special_tokens says"),
    "composed": ("s3", "made of the rows of its pieces"),
    "approximated": ("s2", "made by the method from the donor's rows"),
}


def surgery_sections(records: Sequence[StageRecord], store: Store) -> list[Section]:
    """Transplants and reversions, then fusions; what there is of them."""
    sections = []
    surgeries = of_stage(records, "surgeon")
    if surgeries:
        blocks: list[Any] = []
        plans = [(record, object_json(store, record, SURGERY_RECORD)) for record in surgeries]
        transplants = [(record, plan) for record, plan in plans if plan is not None and "counts" in plan]
        if transplants:
            blocks += _origins(transplants)
        blocks.append(Grid(_texts_table(surgeries), "Bits per byte by kind of text, before and after", links=True))
        blocks.append(
            Note(
                "A transplant is measured against the student before it; a reversion against the original student, and "
                "with the trained model in the teacher's vocabulary beside it. Lower is better."
            )
        )
        blocks.append(Grid(_rows_table(surgeries), "Rows, and answers that stop", links=True))
        sections.append(Section("surgery", "Vocabulary surgery", tuple(blocks)))
    for record in of_stage(records, "fuse"):
        sections.append(_fusion(record))
    return sections


def _origins(transplants: Sequence[tuple[StageRecord, Mapping[str, Any]]]) -> list[Any]:
    bars = []
    for record, plan in transplants:
        counts = plan["counts"]
        parts = [(counts.get(part, {}).get("total", 0), style, said) for part, (style, said) in _PARTS.items()]
        bars.append(Bar(record.label, parts, f"{sum(amount for amount, _, _ in parts):,} tokens"))
    chart = bar_chart(bars, "What each new vocabulary's rows are made of")
    legend = tuple((f"fill {style}", f"{part}: {said}") for part, (style, said) in _PARTS.items())
    blocks: list[Any] = [Figure(chart, "", "What the rows are made of", legend)]
    for record, plan in transplants:
        counts = plan["counts"]
        kinds = list(dict.fromkeys(kind for part in (*_PARTS, "student_only") for kind in counts.get(part, {})))
        kinds.sort(key=lambda kind: (kind == "total", -sum(counts.get(part, {}).get(kind, 0) for part in _PARTS)))
        rows = tuple(
            (
                kind.replace("_", " "),
                *(_count(counts.get(part, {}).get(kind, 0)) for part in (*_PARTS, "student_only")),
            )
            for kind in kinds
        )
        title = f"{record.label}: tokens by kind and by what their row is made of"
        blocks.append(Grid(Table(("kind", *_PARTS, "lost"), rows), title))
        if plan.get("mapped"):
            mapped = tuple((repr(each["donor"]), repr(each["student"])) for each in plan["mapped"])
            blocks.append(
                Grid(Table(("special token", "takes the rows of"), mapped), f"{record.label}: special tokens")
            )
    return blocks


def _count(value: int) -> str:
    return f"{value:,}" if value else MISSING


def _texts_table(surgeries: Sequence[StageRecord]) -> Table:
    rows = []
    for record in surgeries:
        metrics = record.manifest.metrics if record.manifest else {}
        before, after = metrics.get("bits_per_byte_before") or {}, metrics.get("bits_per_byte_after") or {}
        foreign, ratio = metrics.get("bits_per_byte_before_reversion") or {}, metrics.get("bits_per_byte_ratio") or {}
        for kind in before:
            values = (before.get(kind), foreign.get(kind), after.get(kind))
            rows.append(
                (record.label, kind.replace("_", " "), *(number(value) for value in values), number(ratio.get(kind), 3))
            )
    return Table(("surgery", "text", "before", "in the teacher's vocabulary", "after", "after / before"), tuple(rows))


def _rows_table(surgeries: Sequence[StageRecord]) -> Table:
    rows = []
    for record in surgeries:
        if record.manifest is None:
            continue
        metrics, recipe = record.manifest.metrics, record.manifest.recipe
        method = str(recipe.get("method") or recipe.get("strategy") or MISSING).replace("_", " ")
        rows.append(
            (
                record.label,
                str(recipe.get("mode", MISSING)),
                method,
                _count(metrics.get("real_vocab_size") or 0),
                _count(metrics.get("num_rows") or 0),
                _stops(metrics.get("stops")),
            )
        )
    return Table(("surgery", "mode", "method", "tokens", "rows", "answers that stop"), tuple(rows))


def _stops(stops: Any) -> str:
    """`compared_stops`: of as many prompts, how many answers ended by themselves before and after."""
    if not isinstance(stops, Mapping) or stops.get("not_judged"):
        return str(stops["not_judged"]) if isinstance(stops, Mapping) else MISSING
    if stops.get("template_lost"):
        return "the chat template was lost"
    return f"{stops.get('before', MISSING)} → {stops.get('after', MISSING)} of {stops.get('prompts', MISSING)}"


def _fusion(record: StageRecord) -> Section:
    assert record.manifest is not None
    recipe, metrics = record.manifest.recipe, record.manifest.metrics
    shared = ", ".join(f"{name} {json.dumps(value)}" for name, value in (recipe.get("parameters") or {}).items())
    note = f"Merged by {recipe.get('merge_method', MISSING)}"
    note += f" onto the model {recipe['base_model']}" if recipe.get("base_model") else ", without a base"
    note += f"; {shared}" if shared else ""
    note += f", computed in {recipe['dtype']}" if recipe.get("dtype") else ""
    distances = metrics.get("relative_distance") or {}
    models = recipe.get("models") or {}
    rows = tuple(
        (
            name,
            _parameters(models.get(name) or {}),
            number(distances.get(name)),
        )
        for name in dict.fromkeys(("base", *models, *distances))
    )
    blocks: list[Any] = [
        Note(f"{note}."),
        Grid(
            Table(("model", "parameters", "distance of the fusion"), rows), "What was fused; ‖fused − model‖ / ‖model‖"
        ),
    ]
    bits = metrics.get("bits_per_byte") or {}
    if bits:
        kinds = list(next(iter(bits.values())))
        lines = [(name, *(number(values.get(kind)) for kind in kinds)) for name, values in bits.items()]
        ratio = metrics.get("bits_per_byte_ratio") or {}
        lines.append(("fused / best branch", *(number(ratio.get(kind), 3) for kind in kinds)))
        columns = ("model", *(kind.replace("_", " ") for kind in kinds))
        blocks.append(Grid(Table(columns, tuple(lines)), "Bits per byte by kind of text; lower is better"))
    if metrics.get("stops"):
        blocks.append(Note(f"Answers that stop, before → after the fusion: {_stops(metrics['stops'])}."))
    return Section(f"fusion-{record.label}", "Fusion", tuple(blocks))


def _parameters(branch: Mapping[str, Any]) -> str:
    given = branch.get("parameters") or {}
    return "; ".join(f"{name} {setting_text(value)}" for name, value in given.items()) or MISSING
