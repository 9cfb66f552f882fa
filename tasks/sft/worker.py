"""Worker of the stage sft: the shared training on corpus rows, with cross-entropy alone."""

from __future__ import annotations

import json

from tasks.artifacts.errors import BadInputError
from tasks.logits.rows import read_rows
from tasks.sft.stage import SftRecipe
from tasks.training.loop import Training, local_directory, vocabulary_of
from tasks.training.losses import LossWeights
from tasks.training.processes import join
from tasks.training.rows import CorpusRows
from tasks.training.settings import TrainingRuntime
from tasks.worker.job import Job, worker_main


def run(job: Job) -> None:
    """Trains the model of the input "model" on the rows of the input "corpus"."""
    recipe = SftRecipe.model_validate(job.recipe)
    runtime = TrainingRuntime.model_validate(job.runtime)
    processes = join(runtime, job.scratch)
    model = local_directory(job.input("model"), processes)
    corpus = local_directory(job.input("corpus"), processes)
    digest, num_real = vocabulary_of(model)
    written = json.loads((corpus / "corpus.json").read_text(encoding="utf-8"))["tokenizer_digest"]
    if written != digest:
        raise BadInputError(
            f"the corpus was written with tokenizer {written[:16]}, the model has {digest[:16]}; write the corpus with "
            f"this model as its input tokenizer"
        )
    Training(
        job,
        recipe,
        runtime,
        processes,
        model_directory=model,
        num_real=num_real,
        train=CorpusRows(read_rows(corpus / "train.parquet")),
        heldout=CorpusRows(read_rows(corpus / "heldout.parquet")),
        weights=LossWeights(ce=1.0),
        measures_kl=False,
    ).run()


if __name__ == "__main__":
    worker_main(run)
