"""What a DeepSpeed JSON may say beside a profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts.errors import BadInputError
from tasks.training.deepspeed_config import CHECKOUT, deepspeed_config
from tasks.training.settings import OptimizerRecipe, TrainingRecipe, TrainingRuntime

RECIPE = TrainingRecipe(optimizer=OptimizerRecipe(learning_rate=1.0), steps=10, rows_per_step=8)
SHIPPED = sorted(path.stem for path in (CHECKOUT / "configs" / "deepspeed").glob("*.json"))


def test_the_file_says_how_and_never_what(tmp_path: Path) -> None:
    def config(world_size: int = 1, **content: Any) -> dict[str, Any]:
        path = tmp_path / "ds.json"
        path.write_text(json.dumps({"zero_optimization": {"stage": 2}, **content}))
        return deepspeed_config(RECIPE, TrainingRuntime(deepspeed_config=str(path)), world_size)

    merged = config(2, wall_clock_breakdown=True, gradient_clipping=1.0, train_batch_size="auto")
    assert merged["wall_clock_breakdown"] is True
    assert (merged["train_batch_size"], merged["gradient_accumulation_steps"], merged["gradient_clipping"]) == (2, 1, 1)
    for content, message in (
        ({"gradient_clipping": 3}, "gradient_clipping=3"),
        ({"gradient_accumulation_steps": 4}, "sets gradient_accumulation_steps"),
        ({"fp16": {"enabled": True}}, "sets fp16"),
        ({"zero_optimization": {}}, "no ZeRO stage"),
        ({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}, "sets zero_quantized_weights"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "offloads to nvme"),
    ):
        with pytest.raises(BadInputError, match=message):
            config(**content)
    with pytest.raises(BadInputError, match="does not exist"):
        deepspeed_config(RECIPE, TrainingRuntime(deepspeed_config="configs/deepspeed/zero9.json"), 1)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_fit_every_profile(name: str) -> None:
    runtime = TrainingRuntime(deepspeed_config=f"configs/deepspeed/{name}.json")
    config = deepspeed_config(RECIPE, runtime, 1)
    assert name.removesuffix("-offload") == f"zero{config['zero_optimization']['stage']}"
    assert ("offload_optimizer" in config["zero_optimization"]) == name.endswith("-offload")
