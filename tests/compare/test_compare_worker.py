"""The stage on tiny models: what it measures, resumes, keeps apart from the evaluation and refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.compare.measured import Measured
from tasks.compare.results import build_results
from tasks.logits.rows import read_rows
from tasks.modeling.bits_per_byte import TEXTS
from tasks.modeling.stop_prompts import PROMPTS
from tests.committed import read

RunStage = Callable[..., Artifact]
ModelFolder = Callable[..., Path]
RECIPE: dict[str, Any] = {"reference": "base", "skip_documents": 1, "num_arithmetic": 12, "max_new_tokens": 2}


@pytest.fixture
def inputs(model_folder: ModelFolder, corpus_folder: Path, artifact_of: Callable[..., Artifact]) -> dict[str, Artifact]:
    """A reference, a model with another tokenizer, and the held-out texts."""
    return {
        "model.base": artifact_of(model_folder(1)),
        "model.other": artifact_of(model_folder(3, 40)),
        "corpus": artifact_of(corpus_folder),
    }


def test_models_are_measured_item_by_item_on_texts_that_the_evaluation_leaves_out(
    run_stage: RunStage, inputs: dict[str, Artifact], corpus_folder: Path
) -> None:
    done = run_stage("compare", RECIPE, inputs)
    results = json.loads(read(done, "results.json"))
    texts = [row for row in read_rows(corpus_folder / "heldout.parquet") if row.kind == "text"]
    for name in ("base", "other"):
        items, model = json.loads(read(done, f"models/{name}.json")), results["models"][name]
        assert [document["document"] for document in items["documents"]] == [row.document for row in texts[1:]]
        assert model["bits_per_byte"]["heldout"]["bytes"] == sum(row.num_bytes for row in texts[1:])
        for kind, own in TEXTS.items():
            bits = sum(text["bits"] for text in items["texts"][kind])
            size = sum(len(text.encode()) for text in own)
            assert model["bits_per_byte"][kind]["value"] == pytest.approx(bits / size)
        assert model["arithmetic"]["n"] == len(items["arithmetic"]) == 12
        assert model["stops"]["prompts"] == len(items["stopped"]) == len(PROMPTS)
        assert model["template_fault"] is None
    values = {name: model["bits_per_byte"]["heldout"]["value"] for name, model in results["models"].items()}
    pair = results["paired"]["other"]["base"]["bits_per_byte"]["heldout"]
    assert pair["difference"] == pytest.approx(values["other"] - values["base"])
    back = results["paired"]["base"]["other"]["bits_per_byte"]["heldout"]
    assert (back["difference"], back["stderr"]) == (pytest.approx(-pair["difference"]), pytest.approx(pair["stderr"]))

    before = {entry.path for entry in done.store.list(done.path("data"))}
    again = run_stage("compare", RECIPE, inputs)
    added = {entry.path for entry in again.store.list(again.path("data"))} - before
    assert not any("data/model-" in path for path in added), "a measured model is not measured again"


@pytest.mark.parametrize("reference", ["base", "broken"])
def test_a_model_of_broken_numbers_is_told_and_the_others_are_measured(
    run_stage: RunStage, inputs: dict[str, Artifact], model_folder: ModelFolder, tmp_path: Path, reference: str
) -> None:
    broken = shutil.copytree(model_folder(1), tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    done = run_stage("compare", {**RECIPE, "reference": reference}, {**inputs, "model.broken": broken})
    results = json.loads(read(done, "results.json"))
    assert results["models"]["broken"]["fault"] == "it gives logits that are not finite"
    assert {name: set(pairs) for name, pairs in results["paired"].items()} == {"base": {"other"}, "other": {"base"}}
    manifest = done.manifest()
    assert manifest is not None
    assert set(manifest.metrics["minus_reference"]) == ({"other"} if reference == "base" else set())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": "first"}, "compares with 'first', which is not among its models base, other"),
        ({"skip_documents": 2}, "holds out 3 texts, and the first 2 are the evaluation's: 1 are left to choose on"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    run_stage: RunStage, inputs: dict[str, Artifact], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInputError, match=message):
        run_stage("compare", {**RECIPE, **change}, inputs)


def test_stops_are_lost_against_the_reference() -> None:
    bits = tuple({"document": name, "bits": 8.0, "num_bytes": 4} for name in "ab")
    one = {"tokenizer": "x", "documents": bits, "texts": {"prose": bits}, "arithmetic": (True, False)}
    stopped = {"base": (True, True, False), "same": (True, True, True), "mute": (), "worse": (False, True, True)}
    measured = {name: Measured.model_validate({**one, "stopped": own}) for name, own in stopped.items()}
    models = build_results(measured, "base")["models"]
    assert {name: model["stops"]["lost"] for name, model in models.items()} == {
        "base": 0, "same": 0, "mute": 2, "worse": 1
    }  # fmt: skip
    # A reference that was not asked makes no stop that could be lost.
    models = build_results(measured, "mute")["models"]
    assert {model["stops"]["lost"] for model in models.values()} == {0}
