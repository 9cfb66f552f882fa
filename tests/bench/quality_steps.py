"""The comparison as steps of the pipeline: each is made by its stage's own worker and kept in a store of the bench.

The store is the memory: a measurement that was stopped goes on from what is committed there, and a search finds the
trainings that it has made before, as long as the code that trains is the same.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.store import open_store
from tasks.corpus import stage as corpus_stage
from tasks.distill import stage as distill_stage
from tasks.dump_logits import stage as dump_stage
from tasks.models import stage as models_stage
from tasks.runtime.declare import Stage, Step
from tasks.runtime.execute import Outcome, RunContext, execute
from tests.bench.paths import ROOT
from tests.bench.quality_documents import documents_file
from tests.bench.quality_folder import FOLDER
from tests.bench.quality_student import student_directory
from tests.bench.teachers import teacher_directory

MAX_TOKENS = 256
"""Of a row; a longer document becomes several."""
DEV_FRACTION = 0.08
"""Of the documents that are not test's: held out by the corpus stage, judged by every training before and after."""
TEST_ROWS = 320
"""About 42,000 tokens, drawn from all test documents: 2 minutes of a core a model."""
TEMPERATURES = (2.0,)
TEMPLATE_DATE = "2024-07-26"
CPU = {"device": "cpu", "threads": 1}


def _step(stage: Stage, label: str, config: dict[str, Any], **inputs: Step) -> Step:
    return Step(stage, label, stage.config.model_validate({"runtime": CPU, **config}), inputs)


def _model(label: str, directory: Path) -> Step:
    # Relative, since a path is part of the key: a store may be moved together with its checkout.
    source = models_stage.DirectorySource(path=str(directory.relative_to(ROOT))).with_identity()
    return _step(models_stage.STAGE, label, {"recipe": {"source": source}})


@lru_cache(maxsize=1)
def teacher() -> Step:
    """SmolLM2-135M-Instruct."""
    return _model("teacher", teacher_directory("49k"))


@lru_cache(maxsize=1)
def student() -> Step:
    """The teacher with few of its layers."""
    return _model("student", student_directory(teacher_directory("49k")))


def _corpus(label: str, split: str, **recipe: Any) -> Step:
    file = documents_file(split).relative_to(ROOT)
    source = corpus_stage.FilesSource(paths=(str(file),), format="jsonl", text_field="text").with_identity()
    recipe = {"sources": (source,), "max_tokens": MAX_TOKENS, "template_date": TEMPLATE_DATE, **recipe}
    config = {"recipe": recipe, "gates": {"min_heldout_rows": None}}
    return _step(corpus_stage.STAGE, label, config, tokenizer=teacher())


@lru_cache(maxsize=1)
def corpus() -> Step:
    """Rows to train on, and dev's."""
    return _corpus("corpus", "training", heldout_fraction=DEV_FRACTION)


@lru_cache(maxsize=1)
def unseen_corpus() -> Step:
    """Its training split is the test rows; nothing trains on it."""
    return _corpus("test", "test", heldout_fraction=0.0, max_rows=TEST_ROWS)


@lru_cache(maxsize=1)
def dump() -> Step:
    """The teacher's 64 likeliest tokens at each position of `corpus`."""
    recipe = {
        "teacher": {"dtype": "float32"},
        "rows_per_shard": 256,
        "documents_per_chunk": 4,
        "temperatures": TEMPERATURES,
    }
    config = {
        "recipe": recipe,
        "runtime": {**CPU, "tokens_per_batch": 2048},
        # 0.89 here: this text's next word is less certain to the teacher than most.
        "gates": {"min_captured_mass": 0.8},
    }
    return _step(dump_stage.STAGE, "dump", config, teacher=teacher(), corpus=corpus())


def distillation(label: str, recipe: dict[str, Any]) -> Step:
    """A training of the student; its twin's differs in the recipe alone."""
    config = {
        "recipe": recipe,
        # A broken student's first gradients are large.
        "runtime": {**CPU, "micro_batch_tokens": 1024, "spike_factor": None},
        "gates": {"heldout_kl_must_fall": None},
    }
    return _step(distill_stage.STAGE, label, config, student=student(), logits=dump())


def make(step: Step) -> Outcome:
    """The step and all it needs, each made once."""
    for source in step.inputs.values():
        make(source)
    return execute(step, RunContext(open_store(str(FOLDER / "store")), FOLDER / "scratch"))


def directory_of(made: Outcome) -> Path:
    """The artifact's files under their names."""
    artifact = Artifact(open_store(str(FOLDER / "store")), made.ref.directory)
    return artifact.fetch(made.manifest, FOLDER / "made" / f"{made.ref.key[:16]}-{made.ref.digest[:16]}")
