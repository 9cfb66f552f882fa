"""Runs a surgery: what recipe.mode says."""

from __future__ import annotations

from pydantic import TypeAdapter

from tasks.surgeon.revert import revert
from tasks.surgeon.stage import RevertRecipe, SurgeonRecipe, SurgeonRuntime
from tasks.surgeon.transplant import transplant
from tasks.worker.job import Job, worker_main


def run(job: Job) -> None:
    """A model in another vocabulary, and surgery.json."""
    recipe = TypeAdapter(SurgeonRecipe).validate_python(job.recipe)
    runtime = SurgeonRuntime.model_validate(job.runtime)
    if isinstance(recipe, RevertRecipe):
        revert(job, recipe, runtime)
    else:
        transplant(job, recipe, runtime)


if __name__ == "__main__":
    worker_main(run)
