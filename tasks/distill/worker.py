"""Worker of the stage distill: checks that stores and student speak one vocabulary, then runs the shared training."""

from __future__ import annotations

from collections.abc import Mapping

from tasks.artifacts.errors import BadInputError
from tasks.distill.stage import DistillRecipe, LossRecipe, mixture_fault
from tasks.logits.reader import LogitReader
from tasks.training.loop import Training, local_directory, vocabulary_of
from tasks.training.losses import LossWeights
from tasks.training.processes import join
from tasks.training.rows import CorpusRows, FirstRows, MixedRows, RowSource, TemperedRows
from tasks.training.settings import TrainingRuntime
from tasks.worker.job import Job, worker_main


def run(job: Job) -> None:
    """Distils the student of the input "student" from the store of the input "logits", or those of "logits.<name>".

    Of several stores the held-out splits are judged as one: every target of every store counts alike, whatever weight
    its store has in the training. A store may have no held-out rows where another one has some.

    Raises:
        BadInputError: the mixture does not fit the stores, or one of these has no rows to train on, another vocabulary
            than the student, or no teacher that fits the loss.
    """
    recipe = DistillRecipe.model_validate(job.recipe)
    runtime = TrainingRuntime.model_validate(job.runtime)
    stores = job.inputs("logits") or {"logits": job.input("logits")}
    if (fault := mixture_fault(recipe.mixture, stores)) is not None:
        raise BadInputError(f"{job.spec.label}: {fault}")
    readers = {name: LogitReader(job.store, entry.record.directory, entry.manifest) for name, entry in stores.items()}
    train = {name: training_rows(reader, recipe.loss) for name, reader in readers.items()}
    if empty := [name for name, rows in train.items() if not len(rows)]:
        raise BadInputError(
            f"{job.spec.label}: the training split of {', '.join(empty)} has no rows; give the corpus more documents"
            + (", or leave that store out of inputs and mixture" if len(train) > 1 else "")
        )
    judged = {name: FirstRows(reader.rows("heldout"), recipe.max_heldout_rows) for name, reader in readers.items()}
    heldout = {name: rows for name, rows in judged.items() if len(rows)}
    if heldout and (without := sorted(readers.keys() - heldout.keys())):
        job.log(f"judged without {', '.join(without)}, which has no held-out rows")
    processes = join(runtime, job.scratch)
    student = local_directory(job.input("student"), processes)
    digest, num_real = vocabulary_of(student)
    for reader in readers.values():
        reader.require(digest, num_real)
    Training(
        job,
        recipe,
        runtime,
        processes,
        model_directory=student,
        num_real=num_real,
        train=_together(train),
        heldout=_together(heldout),
        mixture=recipe.mixture,
        weights=LossWeights(**recipe.loss.model_dump()),
        measures_kl=True,
    ).run()


def _together(sources: Mapping[str, RowSource]) -> RowSource:
    """Of none: no rows, which a training refuses by the split's name."""
    return MixedRows(sources) if len(sources) > 1 else next(iter(sources.values()), CorpusRows([]))


def training_rows(reader: LogitReader, loss: LossRecipe) -> RowSource:
    """The training rows with the teacher at the loss's temperature.

    Raises:
        BadInputError: the dump did not take the normaliser there, or it holds draws, which are of temperature 1 and
            from which only the forward KL can be estimated, without a weight by the teacher's entropy.
    """
    rows = reader.rows("train")
    if reader.schema.support.kind == "sampled":
        _require_fit_for_draws(reader, loss)
    if loss.temperature == 1:
        return rows
    if loss.temperature not in reader.schema.temperatures:
        raise BadInputError(
            f"loss.temperature is {loss.temperature}, but {reader.uri} has the teacher at the temperatures "
            f"{[1, *reader.schema.temperatures]} only and a truncated set cannot be tempered afterwards; use one of "
            f"these, or add it to recipe.temperatures of dump_logits"
        )
    return TemperedRows(rows, loss.temperature, reader.schema.temperatures.index(loss.temperature))


def _require_fit_for_draws(reader: LogitReader, loss: LossRecipe) -> None:
    remedy = "or dump with support top_k or adaptive"
    if loss.temperature != 1:
        raise BadInputError(
            f"loss.temperature is {loss.temperature}, but {reader.uri} holds draws from the teacher at temperature 1; "
            f"use 1, {remedy}"
        )
    for name in ("reverse_kl", "jsd", "entropy_exponent"):
        if getattr(loss, name):
            raise BadInputError(
                f"loss.{name} is {getattr(loss, name)}, but {reader.uri} holds draws from the teacher, from which only "
                f"forward_kl can be estimated, and not its product with a weight of the same draws; set loss.{name} to "
                f"0, {remedy}"
            )


if __name__ == "__main__":
    worker_main(run)
