"""A small distillation's own parts: a real dump of one miniature, from which another one learns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.dump_logits import worker
from tasks.logits.rows import Row
from tests.bench.dumping import corpus_rows, dump_inputs, recipe_of, runtime_of
from tests.bench.jobs import JobInputs, commit_folder, commit_job, run_here
from tests.bench.paths import ROOT

MINIATURES = ROOT / "tasks" / "models" / "miniatures"
TEACHER, STUDENT = MINIATURES / "qwen-teacher", MINIATURES / "qwen-student"
HELDOUT_ROWS = 8
SAID = "miniature qwen-student (2 layers, hidden 96, 1024 rows) on a dump of qwen-teacher"


def distill_inputs(folder: Path, num_tokens: int, max_tokens: int, **recipe_changes: Any) -> JobInputs:
    """The inputs "student" and "logits", committed below `folder`; some seconds. `recipe_changes`: of the dump's."""
    rows = corpus_rows(TEACHER, num_tokens, max_tokens)
    splits: dict[str, Sequence[Row]] = {"heldout": rows[:HELDOUT_ROWS], "train": rows[HELDOUT_ROWS:]}
    dump = dump_inputs(folder, TEACHER, splits)
    recipe = recipe_of("fp32", prior_tokens=4096, rows_per_shard=64) | {"splits": ["train", "heldout"]} | recipe_changes
    logits = commit_job(run_here(worker.run, dump.spec(recipe, runtime_of(), dump.artifact("logits"))))
    return JobInputs(
        "distill", dump.store, folder, {"student": commit_folder(dump.store, "student", STUDENT), "logits": logits}
    )
