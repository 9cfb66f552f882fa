"""Merges give what their formulas say, and depend on nothing that is in no key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.manifest import Manifest
from tasks.fuse.stage import STAGE, FuseGates, FuseRecipe
from tasks.modeling.model_files import load_causal_lm
from tasks.modeling.stopping import compared_stops
from tasks.modeling.tokenizer_files import load_tokenizer, tokenizer_digest
from tasks.runtime.text_gates import TEXT_KINDS
from tasks.worker.job import Job, PreemptedError

RunStage = Callable[..., Artifact]
MakeModel = Callable[..., Path]

MEDIUS = yaml.safe_load("""
merge_method: ties
models:
  llama: {parameters: {density: 1.0, weight: 1.0}}
  qwen:
    parameters:
      density: 0.66
      weight:
        - {filter: mlp, value: [0, 0.3, 0.6, 0.1]}
        - {filter: self_attn, value: [0, 0, 0.2, 0.1]}
        - {value: 0.1}
parameters: {normalize: false, int8_mask: true}
dtype: float32
out_dtype: bfloat16
""")
LINEAR = {
    "merge_method": "linear",
    "base_model": None,
    "models": {"one": {"parameters": {"weight": 0.5}}, "two": {"parameters": {"weight": 0.5}}},
    "out_dtype": "float32",
}


def _manifest(artifact: Artifact) -> Manifest:
    manifest = artifact.manifest()
    assert manifest is not None
    return manifest


def _files(artifact: Artifact, target: Path) -> Path:
    return artifact.fetch(_manifest(artifact), target)


def _ties(base: torch.Tensor, branches: list[tuple[torch.Tensor, float, float]]) -> torch.Tensor:
    """TIES without normalisation, for (tensor, density, weight), in float32; see arXiv 2306.01708, section 4."""
    deltas = []
    for tensor, density, weight in branches:
        delta = tensor.float() - base.float()
        num_kept = int(density * delta.numel())
        kept = torch.zeros_like(delta).flatten()
        top = delta.abs().flatten().argsort(descending=True)[:num_kept]
        kept[top] = 1
        deltas.append(delta * kept.view_as(delta) * weight)
    total = sum(deltas, torch.zeros_like(base, dtype=torch.float32))
    sign = torch.where(total >= 0, 1.0, -1.0)
    agreed = [torch.where(delta.sign() == sign, delta, 0.0) for delta in deltas]
    return (base.float() + sum(agreed, torch.zeros_like(total))).to(torch.bfloat16)


def test_medius_recipe_merges_by_filter_and_layer(tmp_path: Path, run_stage: RunStage, make_model: MakeModel) -> None:
    """Four layers, so that a gradient of four values gives each layer one of them exactly."""
    base, llama, qwen = make_model("base", 0), make_model("llama", 1), make_model("qwen", 2)
    artifact = run_stage("fuse", MEDIUS, {"base": base, "branch.llama": llama, "branch.qwen": qwen})
    result = _files(artifact, tmp_path / "result")
    merged, *parts = (load_file(path / "model.safetensors") for path in (result, base, llama, qwen))
    weights = {"mlp": [0, 0.3, 0.6, 0.1], "self_attn": [0, 0, 0.2, 0.1]}
    for name, tensor in merged.items():
        kind = next((kind for kind in weights if kind in name), None)
        weight = 0.1 if kind is None else weights[kind][int(name.split(".")[2])]
        expected = _ties(parts[0][name], [(parts[1][name], 1.0, 1.0), (parts[2][name], 0.66, weight)])
        torch.testing.assert_close(tensor, expected, rtol=0.01, atol=1e-3, msg=name)
    assert tokenizer_digest(load_tokenizer(result)) == tokenizer_digest(load_tokenizer(base))
    assert json.loads((result / "config.json").read_text())["dtype"] == "bfloat16"
    distances = _manifest(artifact).metrics["relative_distance"]
    assert distances["llama"] < distances["qwen"]
    assert set(distances) == {"base", "llama", "qwen"}
    measured = _manifest(artifact).metrics
    bits = measured["bits_per_byte"]
    assert set(bits) == {"base", "llama", "qwen", "fused"}
    assert measured["stops"]["prompts"] == 8
    for kind, ratio in measured["bits_per_byte_ratio"].items():
        assert ratio == bits["fused"][kind] / min(bits["llama"][kind], bits["qwen"][kind])


def test_the_shipped_profile_has_the_published_parameters() -> None:
    profile = yaml.safe_load((Path(__file__).parents[2] / "configs" / "medius.yaml").read_text(encoding="utf-8"))
    shipped = FuseRecipe.model_validate(profile["fusion"]["fuse"]["recipe"])
    assert shipped == FuseRecipe.model_validate({**MEDIUS, "chat_from": "qwen"})
    assert shipped.mergekit_config()["base_model"] == "base"
    base = profile["models"][profile["fusion"]["merge_base"]]["recipe"]["source"]
    assert base["repo"] == "Qwen/Qwen2.5-14B"


def test_result_names_no_path_and_two_runs_have_equal_bytes(
    tmp_path: Path, run_stage: RunStage, artifact_of: Callable[..., Artifact], make_model: MakeModel
) -> None:
    base, llama, qwen = make_model("base", 0), make_model("llama", 1), make_model("qwen", 2)
    runs = [
        run_stage("fuse", MEDIUS, {"base": artifact_of(base), "branch.llama": llama, "branch.qwen": qwen})
        for _ in range(2)
    ]
    assert _manifest(runs[0]).key != _manifest(runs[1]).key
    assert _manifest(runs[0]).digest == _manifest(runs[1]).digest
    result = _files(runs[0], tmp_path / "result")
    assert sorted(path.name for path in result.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "merge_config.yml",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for file in result.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
    with safe_open(result / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    stored = yaml.safe_load((result / "merge_config.yml").read_text())
    assert [model["model"] for model in stored["models"]] == ["llama", "qwen"]
    assert stored["base_model"] == "base"


def test_identical_models_merge_to_themselves(tmp_path: Path, run_stage: RunStage, make_model: MakeModel) -> None:
    model = make_model("model", 0)
    artifact = run_stage("fuse", LINEAR, {"base": model, "branch.one": model, "branch.two": model})
    merged = load_file(_files(artifact, tmp_path / "result") / "model.safetensors")
    for name, tensor in load_file(model / "model.safetensors").items():
        assert torch.equal(merged[name], tensor.float()), name
    metrics = _manifest(artifact).metrics
    assert metrics["relative_distance"] == {"base": 0.0, "one": 0.0, "two": 0.0}
    # The models were stored in bfloat16, their merge in float32.
    assert metrics["bits_per_byte_ratio"] == pytest.approx(dict.fromkeys(TEXT_KINDS, 1.0), rel=1e-3)
    assert all(verdict.passed for verdict in STAGE.judge(metrics, FuseGates()))
    assert metrics["parameters"] == sum(tensor.numel() for tensor in merged.values())


def test_result_chats_like_the_model_that_the_recipe_names(
    tmp_path: Path, run_stage: RunStage, make_model: MakeModel
) -> None:
    """A base that was never a chat model ends texts with another token; a merge that takes it over never stops."""
    base = make_model("base", 0, eos="<|endoftext|>")
    one, two = make_model("one", 1), make_model("two", 2)
    artifact = run_stage(
        "fuse",
        {**LINEAR, "merge_method": "task_arithmetic", "base_model": "base", "chat_from": "one"},
        {"base": base, "branch.one": one, "branch.two": two},
    )
    result = _files(artifact, tmp_path / "result")
    im_end = load_tokenizer(one).convert_tokens_to_ids("<|im_end|>")
    tokenizer = AutoTokenizer.from_pretrained(result)
    assert tokenizer.eos_token_id == im_end
    assert tokenizer.chat_template == load_tokenizer(one).chat_template
    assert json.loads((result / "config.json").read_text())["eos_token_id"] == im_end
    assert load_causal_lm(result, dtype=torch.float32).generation_config.eos_token_id == im_end


def test_the_order_of_the_models_means_nothing(
    run_stage: RunStage, artifact_of: Callable[..., Artifact], make_model: MakeModel
) -> None:
    """It is in no key, and dare drops entries of one model after the other."""
    models = {"one": {"parameters": {"density": 0.5, "weight": 0.5}}, "two": {"parameters": {"weight": 0.7}}}
    parameters = {"density": 0.4, "normalize": False}
    recipes = [
        {"merge_method": "dare_linear", "models": dict(order(models)), "parameters": dict(order(parameters))}
        for order in (dict.items, lambda settings: reversed(settings.items()))
    ]
    base, one, two = (make_model(name, seed) for seed, name in enumerate(("base", "one", "two")))
    digests = {
        _manifest(run_stage("fuse", recipe, {"base": artifact_of(base), "branch.one": one, "branch.two": two})).digest
        for recipe in recipes
    }
    assert len(digests) == 1


def test_a_fusion_with_broken_logits_is_kept_and_its_gates_fail(run_stage: RunStage, make_model: MakeModel) -> None:
    models = {name: {"parameters": {"weight": 1e6}} for name in ("one", "two")}
    recipe = {**LINEAR, "models": models, "parameters": {"normalize": False}, "out_dtype": "float16"}
    model = make_model("model", 0)
    metrics = _manifest(run_stage("fuse", recipe, {"base": model, "branch.one": model, "branch.two": model})).metrics
    assert metrics["bits_per_byte_ratio"] == dict.fromkeys(TEXT_KINDS)
    assert metrics["relative_distance"] == {"base": None, "one": None, "two": None}
    for verdict in STAGE.judge(metrics, FuseGates()):
        assert verdict.passed is (verdict.gate == "max_stops_lost")
        assert ("logits are not finite" in verdict.meaning) is not verdict.passed


def test_without_a_base_the_config_is_that_of_the_input_base(
    tmp_path: Path, run_stage: RunStage, make_model: MakeModel
) -> None:
    """mergekit takes that of any model, the first of a set."""
    inputs = {"base": make_model("base", 0, max_position_embeddings=96)}
    inputs |= {f"branch.{name}": make_model(name, 1, max_position_embeddings=64) for name in ("one", "two")}
    result = _files(run_stage("fuse", LINEAR, inputs), tmp_path / "result")
    config = json.loads((result / "config.json").read_text())
    assert (config["max_position_embeddings"], config["dtype"]) == (96, "float32")


def test_a_worker_that_is_asked_to_stop_ends(
    monkeypatch: pytest.MonkeyPatch, run_stage: RunStage, make_model: MakeModel
) -> None:
    model = make_model("model", 0)
    for polls in (0, 5):
        asked = iter([False] * polls)
        monkeypatch.setattr(Job, "stop_requested", property(lambda _, asked=asked: next(asked, True)))
        with pytest.raises(PreemptedError):
            run_stage("fuse", LINEAR, {"base": model, "branch.one": model, "branch.two": model})


def test_branches_of_recipe_and_inputs_must_be_the_same(run_stage: RunStage, make_model: MakeModel) -> None:
    model = make_model("model", 0)
    with pytest.raises(BadInputError, match=r"\['one', 'three'\] as inputs and \['one', 'two'\]"):
        run_stage("fuse", LINEAR, {"base": model, "branch.one": model, "branch.three": model})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"merge_method": "blend"}, "ties"),
        ({"base_model": "three"}, "base_model is 'three'"),
        ({"chat_from": "three"}, "chat_from is 'three'"),
        ({"models": {"../one": {}}}, "lower-case"),
        ({"models": {"fused": {}}}, "which is the result's"),
        ({"dtype": "int8"}, "float32"),
        ({"models": {"one": {"parameters": {"weight": [{"filtre": "mlp", "value": 1}]}}}}, "filtre"),
        ({"models": {"one": {"parameters": {"wieght": 1}}}}, "models.one.parameters has 'wieght'.*it reads weight"),
        ({"models": {"one": {"parameters": {"normalize": True}}}}, "'normalize', which linear does not read there"),
        ({"parameters": {"t": 0.5}}, "parameters has 't'.*reads weight, normalize"),
        (
            {"merge_method": "arcee_fusion", "base_model": "base", "models": {"one": {}}, "parameters": {"t": 0.5}},
            "it reads nothing",
        ),
    ],
)
def test_impossible_recipes_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FuseRecipe.model_validate({**LINEAR, **fields})


def test_a_fusion_worse_than_its_best_branch_fails() -> None:
    ratios = {"prose": 1.1, "code": 1.3, "digits": 1.3}
    stops = compared_stops([True] * 8, [False] * 8)
    judged = STAGE.judge({"bits_per_byte_ratio": ratios, "stops": stops}, FuseGates())
    assert {verdict.gate: verdict.passed for verdict in judged} == {
        "max_ratio_prose": True,
        "max_ratio_code": False,
        "max_ratio_digits": False,
        "max_ratio_non_latin": False,
        "max_stops_lost": False,
    }
