"""One model under two names, as the one that was chosen stands beside the candidates: measured once, told of both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tasks.artifacts.artifact import Artifact
from tests.committed import objects_of

RECIPE = {
    "tasks": [{"type": "exercises", "kinds": ["sort"], "items_per_kind": 4}],
    "reference": "base",
    "candidate": "final",
    "parents": ["tuned"],
    "max_new_tokens": 2,
}


def test_equal_files_are_measured_once(
    run_stage: Callable[..., Artifact],
    model_folder: Callable[..., Path],
    corpus_folder: Path,
    artifact_of: Callable[..., Artifact],
    tmp_path: Path,
) -> None:
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    for file in model_folder(2).iterdir():
        (chosen / file.name).symlink_to(file)
    (chosen / "choice.json").write_text("{}")
    inputs = {
        "model.base": artifact_of(model_folder(1)),
        "model.tuned": artifact_of(model_folder(2)),
        "model.final": artifact_of(chosen),
        "corpus": artifact_of(corpus_folder),
    }
    done = run_stage("evaluate", RECIPE, inputs)
    receipts = done.receipts()
    copied = {name for name, receipt in receipts.items() if receipt.metrics.get("measured_as") == "tuned"}
    assert copied == {"model-final-bits", "model-final-exercise_sort"}
    files = objects_of(done)
    results = json.loads(files["results.json"])
    assert results["models"]["final"] == results["models"]["tuned"]
    assert files["samples/final.jsonl"] == files["samples/tuned.jsonl"]
    pair = results["paired"]["final"]["tuned"]
    assert (pair["accuracy"]["difference"], pair["bits_per_byte"]["difference"]) == (0, 0)

    # One that was measured under the first name before a stop is still taken from there.
    for shard in ("main", *copied):
        done.store.delete(done.path(f"shards/{shard}.json"))
    done.store.delete(done.path("manifest.json"))
    again = run_stage("evaluate", RECIPE, inputs)
    assert again.receipts()["model-final-bits"].metrics == {"measured_as": "tuned"}
