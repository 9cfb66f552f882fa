"""Every method that a recipe may name merges, and what it cannot merge is refused before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from flows.ablation_grid import default_sweeps
from tasks.artifacts.artifact import Artifact
from tasks.fuse import worker
from tasks.fuse.methods import MERGE_INPUTS, MERGE_METHODS, MERGE_PARAMETERS, WITHOUT_DEFAULT
from tasks.fuse.stage import FuseRecipe

WEIGHED = {"one": {"parameters": {"weight": 0.6}}, "two": {"parameters": {"weight": 0.4}}}
PLAIN: dict[str, Any] = {"one": {}, "two": {}}
RECIPES: dict[str, dict[str, Any]] = {
    "arcee_fusion": {"models": {"one": {}}},
    "karcher": {"models": PLAIN, "base_model": None},
    "linear": {"models": WEIGHED, "base_model": None},
    "model_stock": {"models": PLAIN},
    "multislerp": {"models": WEIGHED, "base_model": None},
    "nearswap": {"models": {"one": {}}, "parameters": {"t": 0.02}},
    "nuslerp": {"models": WEIGHED, "base_model": "base"},
    "passthrough": {"models": {"one": {}}, "base_model": None, "parameters": {"scale": 0.5}},
    "ram": {"models": PLAIN},
    "ramplus_tl": {"models": PLAIN},
    "sce": {"models": PLAIN, "parameters": {"select_topk": 0.5}},
    "slerp": {"models": PLAIN, "base_model": "one", "parameters": {"t": 0.5}},
}
"""Those that are not task vectors with a weight for each branch."""


@pytest.mark.parametrize("method", MERGE_METHODS)
def test_every_method_merges(
    method: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_stage: Callable[..., Artifact],
    make_model: Callable[..., Path],
) -> None:
    """Into finite numbers, which are not those of any one of the models."""
    # Of one merge what is measured takes a second, and other tests look at it.
    monkeypatch.setattr(worker, "measure_fusion", lambda *_arguments, **_options: {})
    recipe = {"merge_method": method, "models": WEIGHED, **RECIPES.get(method, {}), "out_dtype": "float32"}
    directories = {name: make_model(name, seed) for seed, name in enumerate(("base", "one", "two"))}
    inputs = {"base": directories["base"], **{f"branch.{name}": directories[name] for name in recipe["models"]}}
    artifact = run_stage("fuse", recipe, inputs)
    manifest = artifact.manifest()
    assert manifest is not None
    merged = load_file(artifact.fetch(manifest, tmp_path / "result") / "model.safetensors")
    originals = {name: load_file(directory / "model.safetensors") for name, directory in directories.items()}
    assert merged.keys() == originals["base"].keys()
    assert all(bool(tensor.isfinite().all()) for tensor in merged.values())
    for name, tensors in originals.items():
        assert any(not torch.equal(merged[key], tensor.float()) for key, tensor in tensors.items()), name


def test_what_a_method_takes_is_what_mergekit_says() -> None:
    from mergekit.merge_methods.registry import registered_methods

    specs = {method.spec.name: method.spec for method in registered_methods()}
    assert {
        name: ({each.name for each in spec.input_parameters}, {each.name for each in spec.shared_parameters})
        for name, spec in specs.items()
    } == {name: (set(of_branch), set(of_method)) for name, (of_branch, of_method) in MERGE_PARAMETERS.items()}
    for name, spec in specs.items():
        contract = spec.contract
        assert MERGE_INPUTS[name] == (
            contract.base.value, contract.min_inputs, contract.max_inputs, contract.min_non_base, contract.max_non_base
        ), name  # fmt: skip
        for parameter in spec.parameters:
            assert parameter.required == (parameter.name in WITHOUT_DEFAULT), (name, parameter.name)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            {"merge_method": "slerp", "models": PLAIN, "parameters": {"t": 0.5}},
            "slerp merges 2 models with its base_model base, and this recipe gives it 3: base, one, two",
        ),
        ({"merge_method": "arcee_fusion", "models": PLAIN}, "arcee_fusion merges 2 models.*gives it 3"),
        ({"merge_method": "nearswap", "models": PLAIN, "parameters": {"t": 1}}, "nearswap merges 2 models"),
        ({"merge_method": "model_stock", "models": {"one": {}}}, "model_stock merges at least 3 models.*gives it 2"),
        ({"merge_method": "passthrough", "models": PLAIN, "base_model": None}, "passthrough merges 1 model"),
        (
            {"merge_method": "passthrough", "models": {"one": {}}, "base_model": "base"},
            "passthrough merges 1 model with its base_model base, and this recipe gives it 2: base, one",
        ),
        (
            {"merge_method": "nuslerp", "models": WEIGHED, "base_model": "one"},
            "nuslerp merges 2 models beside a base_model, and this recipe gives it 1: two",
        ),
        ({"merge_method": "ties", "models": WEIGHED, "base_model": None}, "ties starts from a base"),
        ({"merge_method": "karcher", "models": PLAIN}, "like any other model; write base_model: null"),
        ({"merge_method": "linear", "models": PLAIN, "parameters": {"weight": 1}}, "write base_model: null"),
        ({"merge_method": "passthrough", "models": {"one": {}}}, "write base_model: null"),
        ({"merge_method": "multislerp", "models": WEIGHED}, "merges otherwise with a base_model; write base_model"),
        ({"merge_method": "nuslerp", "models": WEIGHED}, "merges otherwise with a base_model"),
        (
            {"merge_method": "linear", "models": WEIGHED, "base_model": "base"},
            "models.base.parameters has no 'weight', without which linear does not merge",
        ),
        ({"merge_method": "ties", "models": PLAIN}, "models.one.parameters has no 'weight'"),
        ({"merge_method": "slerp", "models": PLAIN, "base_model": "one"}, "parameters has no 't'"),
    ],
)
def test_what_mergekit_would_refuse_or_mix_in_is_refused_at_once(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FuseRecipe.model_validate(recipe)


def test_a_base_that_is_written_is_taken() -> None:
    """By methods that go without one, too, and after the recipe went through a worker's spec."""
    recipe = FuseRecipe.model_validate({"merge_method": "karcher", "models": PLAIN, "base_model": "base"})
    assert FuseRecipe.model_validate(recipe.model_dump(mode="json")) == recipe
    weighed = {"merge_method": "linear", "models": PLAIN, "base_model": "base", "parameters": {"weight": 1}}
    assert FuseRecipe.model_validate(weighed).base_model == "base"


@pytest.mark.parametrize("branches", [("one",), ("one", "two"), ("one", "three", "two")])
def test_the_default_grid_can_be_merged(branches: tuple[str, ...]) -> None:
    found = [fields for sweep in default_sweeps(branches) for fields in sweep.candidates(branches).values()]
    recipes = [FuseRecipe.model_validate(fields) for fields in found]
    assert recipes
    assert all(set(recipe.models) == set(branches) for recipe in recipes)
