"""The stage on tiny models: what it measures, hands on, resumes and refuses."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.choose.conversations import asked_exercises, exercises_of, is_answered
from tasks.choose.stage import STAGE, ChooseConfig, ChooseGates, ChooseRecipe
from tasks.logits.rows import read_rows
from tasks.modeling.model_files import load_causal_lm
from tasks.modeling.model_identity import first_alike, model_digest
from tasks.modeling.stopping import PINNED_DAY, end_tokens
from tasks.modeling.tokenizer_files import load_tokenizer, real_vocab_size
from tests.committed import manifest_of, read

RunStage = Callable[..., Artifact]
ModelFolder = Callable[..., Path]
KINDS = {"type": "exercises", "split": "dev", "kinds": ["reverse", "add"], "items_per_kind": 3}
RECIPE: dict[str, Any] = {"skip_documents": 1, "max_new_tokens": 2, "exercises": KINDS}


@pytest.fixture
def inputs(
    model_folder: ModelFolder, corpus_folder: Path, instructions_folder: Path, artifact_of: Callable[..., Artifact]
) -> dict[str, Artifact]:
    return {
        "model.fused": artifact_of(model_folder(1)),
        "model.tuned": artifact_of(model_folder(2)),
        "corpus": artifact_of(corpus_folder),
        "instructions": artifact_of(instructions_folder),
    }


def with_weights(source: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    change(weights)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_each_candidate_is_measured_on_what_the_evaluation_leaves_out(
    run_stage: RunStage, inputs: dict[str, Artifact], model_folder: ModelFolder, corpus_folder: Path,
    instructions_folder: Path,
) -> None:  # fmt: skip
    done = run_stage("choose", RECIPE, inputs)
    texts = [row for row in read_rows(corpus_folder / "heldout.parquet") if row.kind == "text"]
    chats = [row for row in read_rows(instructions_folder / "heldout.parquet") if row.kind == "chat"]
    choice = json.loads(read(done, "choice.json"))
    for seed, name in ((1, "fused"), (2, "tuned")):
        items = json.loads(read(done, f"candidates/{name}.json"))
        assert [each["document"] for each in items["texts"]] == [row.document for row in texts[1:]]
        assert [each["document"] for each in items["answers"]] == [row.document for row in chats]
        model, tokenizer = load_causal_lm(model_folder(seed), dtype=torch.float32), load_tokenizer(model_folder(seed))
        for row, each in zip(chats, items["answers"], strict=True):
            with torch.inference_mode():
                logits_TV = model(torch.tensor(row.input_ids)[None].long()).logits[0, :, : real_vocab_size(tokenizer)]
            logprobs_TV = logits_TV.log_softmax(-1)
            nats = sum(-float(logprobs_TV[at - 1, row.input_ids[at]]) for at in row.loss_mask.nonzero()[0])
            assert each["bits"] == pytest.approx(nats / math.log(2), rel=1e-4)
            assert each["num_bytes"] == len(row.text.encode())
        own = choice["models"][name]
        assert own["texts"]["documents"] == 2
        assert own["answers"]["documents"] == len(chats)
        assert own["exercises"]["n"] == 6
        assert own["stops"]["prompts"] == 8
    assert set(choice["minus_default"]) == {"tuned"}
    values = {name: model["answers"]["value"] for name, model in choice["models"].items()}
    assert choice["minus_default"]["tuned"]["answers"]["difference"] == pytest.approx(values["tuned"] - values["fused"])
    assert choice["reason"] == manifest_of(done).metrics["reason"]

    before = {entry.path for entry in done.store.list(done.path("data"))}
    again = run_stage("choose", RECIPE, inputs)
    added = {entry.path for entry in again.store.list(again.path("data"))} - before
    assert not any("data/model-" in path for path in added), "a measured candidate is not measured again"


def test_the_chosen_model_is_handed_on_file_by_file(run_stage: RunStage, inputs: dict[str, Artifact]) -> None:
    done = manifest_of(run_stage("choose", RECIPE, inputs))
    models = {role: manifest_of(inputs[role]).objects for role in ("model.fused", "model.tuned")}
    taken = models[f"model.{done.metrics['chosen']}"]
    assert model_digest(done.objects) == model_digest(taken)
    assert {entry.name for entry in done.objects} == {
        *(entry.name for entry in taken), "choice.json", "candidates/fused.json", "candidates/tuned.json"
    }  # fmt: skip
    assert first_alike({**models, "final": done.objects}) == {"final": f"model.{done.metrics['chosen']}"}


def test_an_exercise_is_asked_as_a_chat_and_counts_when_it_is_answered_and_ended(model_folder: ModelFolder) -> None:
    tokenizer = load_tokenizer(model_folder(1))
    model = load_causal_lm(model_folder(1), dtype=torch.float32)
    [end] = end_tokens(model, tokenizer)
    exercises = exercises_of(ChooseRecipe.model_validate(RECIPE).exercises)  # type: ignore[arg-type]
    assert len({exercise.prompt for exercise in exercises}) == 6
    asked = asked_exercises(tokenizer, exercises, end, PINNED_DAY)
    for exercise, each in zip(exercises, asked, strict=True):
        wanted = [each.ids[at] for at in each.targets]
        assert tokenizer.decode(wanted) == f"{exercise.answer}<|im_end|>"
        before = tokenizer.decode(each.ids[: each.targets[0]])
        assert before.endswith(f"<|im_start|>user\n{exercise.prompt}<|im_end|>\n<|im_start|>assistant\n")
        assert is_answered(each, wanted, {end})
        assert is_answered(each, [*wanted[:-1], 0], {end, 0}), "any end token ends it"
        assert not is_answered(each, [*wanted[:-1], wanted[0]], {end}), "an answer that goes on"
        assert not is_answered(each, [end, *wanted[1:]], {end})


def test_a_candidate_of_broken_numbers_does_not_go_on(
    run_stage: RunStage, inputs: dict[str, Artifact], model_folder: ModelFolder, tmp_path: Path
) -> None:
    def broken(weights: dict[str, torch.Tensor]) -> None:
        weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))

    tuned = with_weights(model_folder(2), tmp_path / "broken", broken)
    done = run_stage("choose", RECIPE, {**inputs, "model.tuned": tuned})
    choice = json.loads(read(done, "choice.json"))
    assert choice["chosen"] == "fused"
    assert choice["models"]["tuned"] == {"fault": "it gives logits that are not finite"}
    assert choice["minus_default"] == {}
    both = run_stage("choose", RECIPE, {**inputs, "model.tuned": tuned, "model.fused": tuned})
    metrics = manifest_of(both).metrics
    assert metrics["chosen_stops"] is None
    [gate] = STAGE.judge(metrics, ChooseGates())
    assert not gate.passed, "the artifact is there, and what would go on from it is stopped"


def test_what_cannot_be_chosen_on_is_refused(
    run_stage: RunStage, inputs: dict[str, Artifact], model_folder: ModelFolder
) -> None:
    with pytest.raises(BadInputError, match="holds out 3 texts, and the first 2 are the evaluation's"):
        run_stage("choose", {**RECIPE, "skip_documents": 2}, inputs)
    with pytest.raises(BadInputError, match="holds out 1 conversations to choose on"):
        run_stage("choose", RECIPE, {**inputs, "instructions": inputs["corpus"]})
    with pytest.raises(BadInputError, match="the instructions were written with tokenizer"):
        run_stage("choose", RECIPE, {**inputs, "model.tuned": model_folder(3, 40)})
    with pytest.raises(BadInputError, match="choose has the one model fused"):
        run_stage("choose", RECIPE, {role: value for role, value in inputs.items() if role != "model.tuned"})
    with pytest.raises(BadInputError, match="compares with 'first'"):
        run_stage("choose", {**RECIPE, "default": "first"}, inputs)
    with pytest.raises(ValueError, match="split test, which the evaluation reports"):
        ChooseConfig.model_validate({"recipe": {"exercises": {**KINDS, "split": "test"}}})
