"""Loss and held-out curves of every training, a branch and its twin in one frame."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.store import Store
from tasks.planning.measured import performance_lines
from tasks.publish.lineage import is_twin
from tasks.publish.page.blocks import Figure, Figures, Grid, Note, Section
from tasks.publish.page.lines import Curve, line_chart
from tasks.publish.page.material import TRAINING_LOG, StageRecord, object_lines, of_stage
from tasks.publish.report import distillation_table
from tasks.publish.tables import MISSING, Table, number

Lines = list[dict[str, Any]]
_PARTS = {"forward_kl": "forward KL", "reverse_kl": "reverse KL", "jsd": "JSD", "ce": "cross-entropy"}
_HELDOUT = {"kl": "KL to the teacher", "ce": "cross-entropy"}
_STYLES = ("s1", "s2", "s3", "s4", "s5")


def training_sections(records: Sequence[StageRecord], store: Store) -> list[Section]:
    """The distillations, and the trainings on text or instructions."""
    sections = []
    distilled = of_stage(records, "distill")
    if distilled:
        table = distillation_table({record.label: record.manifest for record in distilled if record.manifest})
        blocks: list[Any] = [
            Note(
                "A twin is the same training on the labels alone. KL is to the branch's own teacher on held-out text, "
                "nats a token; a ratio above 1 favours the branch."
            ),
            Grid(table, "Each branch beside its twin", links=True),
            *_training_blocks(distilled, store),
        ]
        sections.append(Section("distillation", "Distillation", tuple(blocks)))
    tuned = of_stage(records, "sft")
    if tuned:
        sections.append(Section("fine-tuning", "Fine-tuning", tuple(_training_blocks(tuned, store))))
    return sections


def _training_blocks(records: Sequence[StageRecord], store: Store) -> list[Any]:
    logs = {record.label: object_lines(store, record, TRAINING_LOG) for record in records}
    blocks: list[Any] = []
    for together in _groups(records):
        figures = _figures(together, logs)
        if figures:
            title = " and ".join(record.label for record in together)
            blocks.append(Figures(tuple(figures), title, small=True))
    ends = _ends_table([(record, logs[record.label]) for record in records])
    blocks.append(Grid(ends, "Where each curve begins and ends", links=True))
    speeds = _speed_table([(record, performance_lines(Artifact(store, record.directory))) for record in records])
    if speeds.rows:
        blocks.append(
            Grid(speeds, "Speed of the launch that finished each training, medians over its lines", links=True)
        )
    return blocks


def _groups(records: Sequence[StageRecord]) -> list[list[StageRecord]]:
    """Trainings of one start on the same data, the teacher's pupil before its twin."""
    groups: dict[tuple[tuple[str, str], ...], list[StageRecord]] = {}
    for record in records:
        groups.setdefault(tuple(sorted(record.inputs.items())) or ((record.label, ""),), []).append(record)
    return [sorted(group, key=_is_twin) for group in groups.values()]


def _is_twin(record: StageRecord) -> bool:
    return record.manifest is not None and is_twin(record.manifest)


def _figures(records: Sequence[StageRecord], logs: Mapping[str, Lines]) -> list[Figure]:
    """Training loss, each held-out measure, and the gradient's norm."""
    figures = [
        _figure(records, logs, "loss", "Training loss", "means between two lines of the log", parts=True),
        *(
            _figure(records, logs, f"heldout_{part}", f"Held-out {said}", "nats a token", parts=False)
            for part, said in _HELDOUT.items()
        ),
        _figure(records, logs, "grad_norm", "Gradient norm", "means between two lines of the log", parts=False),
    ]
    return [figure for figure in figures if figure is not None]


def _figure(
    records: Sequence[StageRecord], logs: Mapping[str, Lines], column: str, title: str, caption: str, *, parts: bool
) -> Figure | None:
    curves = []
    for index, record in enumerate(records):
        style = _STYLES[index % len(_STYLES)]
        own = _points(logs[record.label], column)
        if own:
            curves.append(Curve(record.label, style, own))
        weighed = [name for name in _PARTS if _points(logs[record.label], name)]
        # A loss of one part is that part.
        for number_of_part, name in enumerate(weighed if parts and len(weighed) > 1 else ()):
            dash = ("dashed", "dotted")[number_of_part % 2]
            curves.append(
                Curve(f"{record.label}: {_PARTS[name]}", f"{style} {dash}", _points(logs[record.label], name))
            )
    names = " and ".join(record.label for record in records)
    chart = line_chart(curves, f"{title} of {names} over steps")
    if chart is None:
        return None
    legend = tuple((f"stroke {curve.style}", curve.name) for curve in curves)
    return Figure(chart, caption, title, legend if len(curves) > 1 else ())


def _points(lines: Lines, column: str) -> list[tuple[float, float]]:
    return [(line["step"], line[column]) for line in lines if line.get(column) is not None]


def _ends_table(trainings: Sequence[tuple[StageRecord, Lines]]) -> Table:
    rows = []
    for record, lines in trainings:
        loss, kl, ce = (_points(lines, name) for name in ("loss", "heldout_kl", "heldout_ce"))
        steps = max((line["step"] for line in lines), default=None)
        norms = [norm for _, norm in _points(lines, "grad_norm")]
        rows.append(
            (
                record.label,
                MISSING if steps is None else f"{steps:,}",
                _ends(loss),
                _ends(kl),
                _ends(ce),
                number(max(norms, default=None), 3),
            )
        )
    columns = ("training", "steps", "loss", "held-out KL", "held-out cross-entropy", "largest gradient norm")
    return Table(columns, tuple(rows))


def _ends(points: Sequence[tuple[float, float]]) -> str:
    return f"{number(points[0][1])} → {number(points[-1][1])}" if points else MISSING


def _speed_table(trainings: Sequence[tuple[StageRecord, Lines]]) -> Table:
    rows = []
    for record, lines in trainings:
        if not lines:
            continue
        speed, wait, padding, utilisation = (
            _median(lines, name) for name in ("tokens_per_second", "data_wait", "padding", "mfu")
        )
        shares = [MISSING if share is None else f"{100 * share:.1f} %" for share in (wait, padding, utilisation)]
        rows.append((record.label, MISSING if speed is None else f"{speed:,.0f}", *shares))
    columns = ("training", "tokens a second", "waiting for data", "padding", "of the peak FLOP/s")
    return Table(columns, tuple(rows))


def _median(lines: Lines, name: str) -> float | None:
    found = [line[name] for line in lines if line.get(name) is not None]
    return statistics.median(found) if found else None
