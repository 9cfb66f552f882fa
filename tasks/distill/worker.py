"""Worker of the stage distill: checks that store and student speak one vocabulary, then runs the shared training."""

from __future__ import annotations

from tasks.artifacts.errors import BadInputError
from tasks.distill.stage import DistillRecipe, LossRecipe
from tasks.logits.reader import LogitReader
from tasks.training.batches import RowSource, TemperedRows
from tasks.training.loop import Training, local_directory, vocabulary_of
from tasks.training.losses import LossWeights
from tasks.training.processes import join
from tasks.training.settings import TrainingRuntime
from tasks.worker.job import Job, worker_main


def run(job: Job) -> None:
    """Distils the student of the input "student" from the store of the input "logits"."""
    recipe = DistillRecipe.model_validate(job.recipe)
    runtime = TrainingRuntime.model_validate(job.runtime)
    logits = job.input("logits")
    reader = LogitReader(job.store, logits.record.directory, logits.manifest)
    train = tempered(reader, recipe.loss)
    processes = join(runtime, job.scratch)
    student = local_directory(job.input("student"), processes)
    digest, num_real = vocabulary_of(student)
    reader.require(digest, num_real)
    Training(
        job,
        recipe,
        runtime,
        processes,
        model_directory=student,
        num_real=num_real,
        train=train,
        heldout=reader.rows("heldout"),
        weights=LossWeights(recipe.loss.kd, recipe.loss.ce, recipe.loss.temperature),
        measures_kl=True,
    ).run()


def tempered(reader: LogitReader, loss: LossRecipe) -> RowSource:
    """The training rows with the teacher at the loss's temperature.

    Raises:
        BadInputError: the dump did not take the normaliser there, or it holds draws, which are of temperature 1.
    """
    rows = reader.rows("train")
    if loss.temperature == 1:
        return rows
    if reader.schema.support.kind == "sampled":
        raise BadInputError(
            f"loss.temperature is {loss.temperature}, but {reader.uri} holds draws from the teacher at temperature 1; "
            f"use 1, or dump with support top_k or adaptive"
        )
    if loss.temperature not in reader.schema.temperatures:
        raise BadInputError(
            f"loss.temperature is {loss.temperature}, but {reader.uri} has the teacher at the temperatures "
            f"{[1, *reader.schema.temperatures]} only and a truncated set cannot be tempered afterwards; use one of "
            f"these, or add it to recipe.temperatures of dump_logits"
        )
    return TemperedRows(rows, loss.temperature, reader.schema.temperatures.index(loss.temperature))


if __name__ == "__main__":
    worker_main(run)
