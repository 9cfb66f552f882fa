"""What a DeepSpeed JSON may say beside a profile."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.profiles import CONFIGS, Profile, load_profile
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.frozen import Frozen
from tasks.training.deepspeed_config import CHECKOUT, deepspeed_config
from tasks.training.settings import OptimizerRecipe, TrainingRecipe, TrainingRuntime

RECIPE = TrainingRecipe(optimizer=OptimizerRecipe(learning_rate=1.0), steps=10, rows_per_step=8)
PROFILES = sorted(CONFIGS.glob("*.yaml"))
SHIPPED = sorted(path.stem for path in (CHECKOUT / "configs" / "deepspeed").glob("*.json"))


def test_the_file_says_how_and_never_what(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"

    def config(world_size: int = 1, **content: Any) -> dict[str, Any]:
        path.write_text(json.dumps({"zero_optimization": {"stage": 2}, **content}))
        return deepspeed_config(RECIPE, TrainingRuntime(deepspeed_config=str(path)), world_size)

    def offloading(**keys: Any) -> dict[str, Any]:
        return {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", **keys}}}

    assert config(**offloading(pin_memory=False))["zero_optimization"]["offload_optimizer"]["pin_memory"] is False
    merged = config(2, wall_clock_breakdown=True, gradient_clipping=1.0, train_batch_size="auto")
    assert merged["wall_clock_breakdown"] is True
    assert (merged["train_batch_size"], merged["gradient_accumulation_steps"], merged["gradient_clipping"]) == (2, 1, 1)
    for content, message in (
        ({"gradient_clipping": 3}, "gradient_clipping=3"),
        ({"gradient_accumulation_steps": 4}, "sets gradient_accumulation_steps"),
        ({"fp16": {"enabled": True}}, "sets fp16"),
        ({"communication_data_type": "bf16"}, "communication_data_type=bf16, the profile fp32"),
        ({"zero_optimization": {}}, "no ZeRO stage"),
        ({"zero_optimization": 2}, "no ZeRO stage"),
        ({"zero_optimization": {"stage": 2, "load_from_fp32_weights": False}}, "sets load_from_fp32_weights=False"),
        ({"zero_optimization": {"stage": 3, "offload_param": None}}, "sets offload_param=None"),
        ({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}, "sets zero_quantized_weights"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "offloads to nvme"),
        (offloading(super_offload=True), "sets super_offload in offload_optimizer, where only device and pin_memory"),
        (offloading(ratio=0.5), "sets ratio in offload_optimizer"),
        (offloading(nvme_path="/tmp"), "sets nvme_path in offload_optimizer"),
    ):
        with pytest.raises(BadInputError, match=message) as refused:
            config(**content)
        assert str(path) in str(refused.value)
    for text, message in (('{"zero_optimization": {"stage": 2},}', "no valid JSON"), ("[]", "must hold an object")):
        path.write_text(text)
        with pytest.raises(BadInputError, match=rf"ds\.json {message}|ds\.json is {message}"):
            deepspeed_config(RECIPE, TrainingRuntime(deepspeed_config=str(path)), 1)
    with pytest.raises(BadInputError, match="does not exist"):
        deepspeed_config(RECIPE, TrainingRuntime(deepspeed_config="configs/deepspeed/zero9.json"), 1)


def test_shipped_files_fit_every_profile() -> None:
    # Not load_profile, which hashes the corpora: 13 s.
    profiles = [Profile.model_validate(yaml.safe_load(path.read_text())) for path in PROFILES]
    recipes = [recipe for profile in profiles for recipe in training_recipes(profile)]
    assert len(recipes) > 2 * len(profiles)
    for name, recipe in itertools.product(SHIPPED, recipes):
        runtime = TrainingRuntime(deepspeed_config=f"configs/deepspeed/{name}.json")
        config = deepspeed_config(recipe, runtime, 1)
        assert name.removesuffix("-offload") == f"zero{config['zero_optimization']['stage']}"
        assert ("offload_optimizer" in config["zero_optimization"]) == name.endswith("-offload")
        # ZeRO 0 is clipped by the engine.
        norm = 0 if name == "zero0" else recipe.optimizer.max_grad_norm
        assert (config["communication_data_type"], config["gradient_clipping"]) == ("fp32", norm)


def training_recipes(block: object) -> Iterator[TrainingRecipe]:
    """Those of all stages of a profile that train."""
    if isinstance(block, TrainingRecipe):
        yield block
    elif isinstance(block, Frozen):
        for name in type(block).model_fields:
            yield from training_recipes(getattr(block, name))
    elif isinstance(block, Mapping):
        for value in block.values():
            yield from training_recipes(value)


@pytest.mark.parametrize("where", ["branches.llama.distill", "fine_tuning.sft"])
def test_a_profile_is_refused_with_its_file(tmp_path: Path, where: str) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, "train_batch_size": 8}))
    with pytest.raises(BadInputError, match=rf"{where}: \S*ds.json sets train_batch_size"):
        load_profile("micro", [f"{where}.runtime.deepspeed_config={path}"])
