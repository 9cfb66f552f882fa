"""Cleans instructions: instructions.jsonl in; instructions.jsonl, clean.json and funnel.svg out. Needs no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from tasks.benchmarks.decontamination import EvaluationIndex, read_index
from tasks.benchmarks.evaluation_sets import HarnessSet
from tasks.benchmarks.hub import confine_hub
from tasks.clean.duplicates import ExactDuplicates, near_judge
from tasks.clean.filters import Judge, cut_off, language_judge, length_judge, refused
from tasks.clean.rows import Row, read_rows
from tasks.clean.stage import NOT_DECONTAMINATED, STEPS, CleanRecipe, CleanRuntime
from tasks.worker.job import Job, worker_main

FILE = "instructions.jsonl"


def run(job: Job) -> None:
    """Removes rows step by step and completes the artifact."""
    recipe = CleanRecipe.model_validate(job.recipe)
    runtime = CleanRuntime.model_validate(job.runtime)
    # Matplotlib and the Hugging Face libraries read these when they are imported.
    os.environ.setdefault("MPLCONFIGDIR", str(job.scratch / "matplotlib"))
    from_hub = runtime.mirror is None and any(isinstance(each, HarnessSet) for each in recipe.evaluations)
    confine_hub(job.scratch, offline=not from_hub, mirror=runtime.mirror)
    from tasks.clean.funnel import FunnelStep, plot_funnel

    source = job.input("instructions")
    index = _index(job, recipe, runtime.mirror)
    exact = ExactDuplicates()
    judges = _judges(recipe, index, exact)
    steps = {name: FunnelStep(name) for name in judges}
    output = job.new_directory("output")
    offered = rows = 0
    with (output / FILE).open("wb") as file:
        for row in _with_progress(job, read_rows(source.bytes(FILE), f"{FILE} of {source.artifact.uri}")):
            offered += 1
            if all(steps[name].keeps(row, judge) for name, judge in judges.items()):
                exact.keep(row)
                file.write(row.line + b"\n")
                rows += 1
    summary: dict[str, Any] = {
        "offered": offered,
        "rows": rows,
        "removed_share": 1 - rows / offered if offered else 0.0,
        "not_decontaminated": dict(recipe.not_decontaminated) if index is not None else {},
        "evaluations": {name: asdict(count) for name, count in index.counts.items()} if index is not None else {},
    }
    told = {**summary, "steps": [step.record() for step in steps.values()]}
    report = json.dumps(told, ensure_ascii=False, indent=1, sort_keys=True)
    (output / "clean.json").write_text(report + "\n", encoding="utf-8")
    plot_funnel(offered, list(steps.values()), output / "funnel.svg")
    job.progress(offered, offered, "rows")
    job.complete(output, {**summary, "removed": {name: step.removed for name, step in steps.items()}})


def _judges(recipe: CleanRecipe, index: EvaluationIndex | None, exact: ExactDuplicates) -> dict[str, Judge]:
    """The steps that are on, in their order."""
    judges: dict[str, Judge | None] = {
        "length": length_judge(recipe.length) if recipe.length is not None else None,
        "refusals": refused if recipe.refusals is not None else None,
        "truncated": cut_off if recipe.truncated is not None else None,
        "language": language_judge(recipe.language) if recipe.language is not None else None,
        "decontamination": (lambda row: index.judge(row.spoken)) if index is not None else None,
        "exact_duplicates": exact.judge if recipe.exact_duplicates is not None else None,
        "near_duplicates": near_judge(recipe.near_duplicates) if recipe.near_duplicates is not None else None,
    }
    return {name: judge for name in STEPS if (judge := judges[name]) is not None}


def _index(job: Job, recipe: CleanRecipe, mirror: str | None) -> EvaluationIndex | None:
    """The items of all sets that are read, None where there is no decontamination."""
    if recipe.decontamination is None:
        return None

    def log(text: str) -> None:
        job.log(text)
        job.leave_if_asked()

    settings, left_out = recipe.decontamination, recipe.not_decontaminated
    return read_index(settings, recipe.evaluations, left_out, mirror, log, NOT_DECONTAMINATED)


def _with_progress(job: Job, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows; nothing is kept of a cleaning that is stopped, which takes a minute for 10,000 rows."""
    for done, row in enumerate(rows):
        if job.progress_each_second(done, None, "rows"):
            job.leave_if_asked()
        yield row


if __name__ == "__main__":
    worker_main(run)
