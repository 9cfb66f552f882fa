"""Makes instructions.jsonl from whichever source the recipe names. Libraries of the other sources are not loaded."""

from __future__ import annotations

from typing import Any

from tasks.artifacts.errors import BadInputError
from tasks.evolve import sources
from tasks.evolve.method_file import METHOD_FILE
from tasks.evolve.rows import Result, write_lines, write_result
from tasks.evolve.stage import AutoEvolSource, DatasetSource, EvolveRecipe, EvolveRuntime
from tasks.worker.job import Job, worker_main


def run(job: Job) -> None:
    """Writes instructions.jsonl, evolve.json and, for `autoevol`, method.txt and trajectories.jsonl."""
    source = EvolveRecipe.model_validate(job.recipe).source
    runtime = EvolveRuntime.model_validate(job.runtime)
    output = job.new_directory("output")
    launch_metrics: dict[str, Any] = {}
    if isinstance(source, AutoEvolSource):
        from tasks.evolve import autoevol

        if runtime.endpoint is None:
            raise BadInputError("the source autoevol needs an endpoint; set evolve.runtime.endpoint.base_url")
        offered = sources.offered_seeds(source, job.scratch / "datasets")
        evolved = autoevol.run(job, source, runtime.endpoint, offered)
        result: Result = evolved.result
        (output / METHOD_FILE).write_text(evolved.method, encoding="utf-8")
        write_lines(evolved.trajectories, output / "trajectories.jsonl")
        launch_metrics = evolved.launch_metrics
    elif isinstance(source, DatasetSource):
        result = sources.from_dataset(source, job.scratch / "datasets")
    else:
        result = sources.from_exercises(source)
    summary = write_result(result, source.kind, output)
    job.progress(len(result.rows), len(result.rows), "rows")
    rejected = 1 - len(result.rows) / result.offered if result.offered else 0.0
    job.complete(output, {**summary, "rows": len(result.rows), "rejected_fraction": rejected, **launch_metrics})


if __name__ == "__main__":
    worker_main(run)
