"""Rows of how runs are operated: what Prefect and the store cost beside the stages, and many runs at once."""

from __future__ import annotations

from tests.bench.records import Declared

PIPELINES = 8


def _row(name: str, unit: str, says: str, goal: float | None = None) -> Declared:
    return Declared(name=f"ops.{name}", unit=unit, goal=goal, says=says)


OPS = [
    _row("stage_ms", "ms", "Wall time of a run, one stage at a time, beyond its workers' processes, a stage.", 150),
    _row("flow_cpu_seconds", "s", "CPU time of that run's own process, imports included.", 5),
    _row("reused_seconds", "s", "A run of the production recipe's DAG, every stage finished.", 15),
    _row("reused_stage_ms", "ms", "What one more finished stage adds to a run."),
    _row("eight.lost", "runs", f"Of {PIPELINES} at once that did not end Completed, and unfinished stages.", 0),
    _row("eight.twice", "", "Launches and shards that were made twice by them.", 0),
    _row("eight.seconds", "s", "From the start of the first to the end of the last."),
]
