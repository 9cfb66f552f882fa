"""The run as a graph, and what its gates said."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.publish.page.blocks import Figure, Grid, Note, Section
from tasks.publish.page.dag import dag_figure
from tasks.publish.page.material import JudgedGate, StageRecord
from tasks.publish.tables import MISSING, Table


def graph_section(records: Sequence[StageRecord]) -> Section:
    """The DAG, and why stages that are not finished are not."""
    svg, legend = dag_figure(records)
    caption = (
        "Time is that of the launch that finished a stage, size that of its artifact. Lines that follow from others "
        "are left out; the lineage has them all. A box leads to the stage's figures."
    )
    rows = tuple(
        (record.label, record.state, record.reason or MISSING) for record in records if record.state != "finished"
    )
    unfinished = (
        [Grid(Table(("stage", "state", "why"), rows), "Stages that are not finished", links=True)] if rows else []
    )
    return Section("graph", "Stages", (Figure(svg, caption, legend=legend, wide=True), *unfinished))


def gates_section(records: Sequence[StageRecord]) -> Section:
    """Every gate with its number, the failed ones first."""
    found = [(record, gate) for record in records for gate in record.gates]
    # sorted() is stable: the order of the stages stays.
    found.sort(key=lambda each: each[1].passed)
    rows = tuple(
        (
            record.label,
            gate.gate,
            MISSING if gate.value is None else f"{gate.value:.6g}",
            gate.wanted,
            verdict(gate),
            gate.meaning,
        )
        for record, gate in found
    )
    if not rows:
        return Section("gates", "Gates", (Note("No stage has been judged yet."),))
    table = Table(("stage", "gate", "value", "wanted", "verdict", "meaning"), rows)
    passed = sum(gate.passed for _, gate in found)
    note = (
        f"{passed} of {len(found)} gates passed. A stage refuses an input whose gate failed, until someone accepts it."
    )
    return Section("gates", "Gates", (Note(note), Grid(table, "Gates and their verdicts", links=True)))


def verdict(gate: JudgedGate) -> str:
    """`✓ passed`, `✕ failed`, or why a failed gate was accepted."""
    if gate.passed:
        return "✓ passed"
    return f"✕ accepted: {gate.accepted}" if gate.accepted is not None else "✕ failed"
