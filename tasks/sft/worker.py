"""Worker of the stage sft: the shared training on corpus rows, with cross-entropy alone unless logits are replayed."""

from __future__ import annotations

import json
from pathlib import Path

from tasks.artifacts.errors import BadInputError
from tasks.logits.reader import LogitReader
from tasks.logits.rows import read_rows
from tasks.sft.stage import ReplayingSftRecipe, recipe_of
from tasks.training.loop import Training, local_directory, vocabulary_of
from tasks.training.losses import LossWeights
from tasks.training.processes import Processes, join
from tasks.training.rows import CorpusRows, FirstRows, MixedRows, RowSource
from tasks.training.settings import TrainingRuntime
from tasks.worker.job import Job, worker_main


def run(job: Job) -> None:
    """Trains the model of the input "model" on the rows of the input "corpus"."""
    recipe = recipe_of(job.recipe)
    runtime = TrainingRuntime.model_validate(job.runtime)
    processes = join(runtime, job.scratch)
    model = local_directory(job.input("model"), processes)
    corpus = local_directory(job.input("corpus"), processes)
    digest, num_real = vocabulary_of(model)
    train: RowSource = _corpus_rows(corpus, "the corpus", digest)
    mixture, epoch_rows, forward_kl = None, None, 0.0
    if isinstance(recipe, ReplayingSftRecipe):
        replay = _replayed(job, processes, digest, num_real)
        for name, rows in (("the corpus", train), ("the replay", replay)):
            if not len(rows):
                raise BadInputError(f"{job.spec.label}: {name} has no rows to train on; give it more documents")
        epoch_rows = recipe.replay.rows_of_epoch(len(train))
        train = MixedRows({"instructions": train, "replay": replay}, some_untaught=True)
        # What was written is meant: 1 - 0.15 is 0.85, and not the binary number next to it.
        mixture = {"instructions": round(1 - recipe.replay.weight, 9), "replay": recipe.replay.weight}
        forward_kl = 0.0 if train.kinds[1] == "none" else recipe.replay.forward_kl
    Training(
        job,
        recipe,
        runtime,
        processes,
        model_directory=model,
        num_real=num_real,
        train=train,
        heldout=FirstRows(CorpusRows(read_rows(corpus / "heldout.parquet")), recipe.max_heldout_rows),
        mixture=mixture,
        epoch_rows=epoch_rows,
        # Of a row without a teacher the KL is 0, and so is its gradient.
        weights=LossWeights(ce=1.0, forward_kl=forward_kl),
        measures_kl=False,
    ).run()


def _corpus_rows(folder: Path, what: str, digest: str) -> CorpusRows:
    """The training rows of a corpus.

    Raises:
        BadInputError: it was written with another tokenizer than that of the digest.
    """
    written = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))["tokenizer_digest"]
    if written != digest:
        raise BadInputError(
            f"{what} was written with tokenizer {written[:16]}, the model has {digest[:16]}; write the corpus with "
            f"this model as its input tokenizer"
        )
    return CorpusRows(read_rows(folder / "train.parquet"))


def _replayed(job: Job, processes: Processes, digest: str, num_real: int) -> RowSource:
    """The training rows of the input "replay": with their teacher's logits, or of a corpus without.

    Raises:
        BadInputError: they are in another vocabulary than the model's.
    """
    entry = job.input("replay")
    if entry.manifest.object("corpus.json") is not None:
        return _corpus_rows(local_directory(entry, processes), "the corpus to replay", digest)
    reader = LogitReader(job.store, entry.record.directory, entry.manifest)
    reader.require(digest, num_real)
    return reader.rows("train")


if __name__ == "__main__":
    worker_main(run)
