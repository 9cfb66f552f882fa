"""Cloze items of the texts that the evaluation leaves out: asked and scored as an evaluation does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.artifacts.artifact import Artifact
from tasks.logits.rows import make_row, write_rows
from tests.committed import read
from tests.evaluate.test_plain_text import CLOZE, texts

RunStage = Callable[..., Artifact]


def test_candidates_answer_what_an_evaluation_of_these_texts_asks(
    run_stage: RunStage, model_folder: Callable[..., Path], instructions_folder: Path, tmp_path: Path
) -> None:
    rows = [make_row([1, 2], [0, 1], each.text, "text", "test", each.document) for each in texts()]
    # What the evaluation reports.
    own = make_row(
        [1, 2], [0, 1], "The evaluation reads this text and chooses by nothing of it.", "text", "test", "own"
    )
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    write_rows(corpus / "heldout.parquet", [own, *rows])
    models = {"fused": model_folder(1), "tuned": model_folder(2)}
    given = {**{f"model.{name}": folder for name, folder in models.items()}, "corpus": corpus}
    recipe: dict[str, Any] = {"skip_documents": 1, "max_new_tokens": 2, "cloze": CLOZE}
    chosen = run_stage("choose", recipe, {**given, "instructions": instructions_folder})
    asked = {"tasks": [CLOZE], "reference": "fused", "candidate": "tuned", "skip_documents": 1, "bits_per_byte": False}
    evaluated = run_stage("evaluate", asked, given)
    results = json.loads(read(evaluated, "results.json"))
    choice = json.loads(read(chosen, "choice.json"))
    for name in models:
        items = [json.loads(line) for line in read(evaluated, f"samples/{name}.jsonl").splitlines()]
        measured = json.loads(read(chosen, f"candidates/{name}.json"))
        assert measured["cloze"] == [bool(item["outcome"]) for item in items]
        assert measured["cloze_documents"] == [item["cluster"].removeprefix("cloze/") for item in items]
        assert choice["models"][name]["cloze"]["value"] == results["models"][name]["entries"]["cloze"]["value"]
    assert choice["minus_default"]["tuned"]["cloze"]["n"] == CLOZE["items"]
