"""Schedules, lengths, and the refusal of settings that contradict each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.artifacts.errors import BadInputError
from tasks.distill.stage import STAGE as DISTILL
from tasks.distill.stage import DistillConfig, DistillGates
from tasks.sft.stage import STAGE as SFT
from tasks.sft.stage import SftGates
from tasks.training.engine import deepspeed_config
from tasks.training.settings import OptimizerRecipe, TrainingRecipe, TrainingRuntime

OPTIMIZER = OptimizerRecipe(learning_rate=1.0, warmup_fraction=0.2, final_fraction=0.1)
RECIPE = TrainingRecipe(optimizer=OPTIMIZER, steps=10, rows_per_step=8)


def test_the_rate_rises_linearly_and_falls_to_its_end() -> None:
    rates = [OPTIMIZER.rate(step, 10) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[6] == pytest.approx(0.55)
    assert 0.1 < rates[9] < 0.2
    constant = OPTIMIZER.model_copy(update={"schedule": "constant"})
    assert [constant.rate(step, 10) for step in range(10)] == [0.5] + 9 * [1.0]


def test_epochs_count_documents() -> None:
    fields = {"optimizer": OPTIMIZER, "rows_per_step": 8}
    assert TrainingRecipe(**fields, epochs=2).num_steps(100) == 25
    assert TrainingRecipe(**fields, epochs=0.01).num_steps(100) == 1
    for lengths in ({}, {"steps": 1, "epochs": 1}):
        with pytest.raises(ValidationError, match="either steps or epochs"):
            TrainingRecipe(**fields, **lengths)


def distill(**recipe: object) -> DistillConfig:
    runtime = {"micro_batch_rows": 3, "num_processes": 2, "launcher": "torchrun"}
    fields = {"optimizer": {"learning_rate": 1}, "steps": 1, "rows_per_step": 12, **recipe}
    return DistillConfig.model_validate({"recipe": fields, "runtime": runtime})


def test_a_profile_that_cannot_work_is_refused() -> None:
    assert distill().recipe.loss.kd == 1
    with pytest.raises(ValidationError, match="multiple of 6"):
        distill(rows_per_step=8)
    with pytest.raises(ValidationError, match="nothing to learn"):
        distill(loss={"kd": 0, "ce": 0})


def test_the_deepspeed_file_says_how_and_never_what(tmp_path: Path) -> None:
    def config(world_size: int = 1, **content: object) -> dict[str, object]:
        path = tmp_path / "ds.json"
        path.write_text(json.dumps({"zero_optimization": {"stage": 2}, **content}))
        runtime = TrainingRuntime(micro_batch_rows=2, deepspeed_config=str(path))
        return deepspeed_config(RECIPE, runtime, world_size)

    merged = config(2, wall_clock_breakdown=True, gradient_accumulation_steps=2, train_batch_size="auto")
    assert merged["wall_clock_breakdown"] is True
    assert (merged["train_batch_size"], merged["gradient_accumulation_steps"]) == (8, 2)
    with pytest.raises(BadInputError, match="gradient_clipping=3"):
        config(gradient_clipping=3)
    with pytest.raises(BadInputError, match="sets fp16"):
        config(fp16={"enabled": True})
    with pytest.raises(BadInputError, match="no ZeRO stage"):
        config(zero_optimization={"stage": 0})
    with pytest.raises(BadInputError, match="does not exist"):
        deepspeed_config(RECIPE, TrainingRuntime(deepspeed_config="configs/deepspeed/zero9.json"), 1)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_shipped_files_fit_every_profile(stage: int) -> None:
    runtime = TrainingRuntime(deepspeed_config=f"configs/deepspeed/zero{stage}.json")
    assert deepspeed_config(RECIPE, runtime, 1)["zero_optimization"]["stage"] == stage


def test_gates_compare_the_end_with_the_start() -> None:
    metrics = {"heldout_kl_start": 2.0, "heldout_kl": 1.0, "heldout_ce_start": 2.0, "heldout_ce": 2.5}
    [kl] = DISTILL.judge(metrics, DistillGates(heldout_kl_must_fall=0.6))
    assert (kl.passed, kl.value) == (True, 0.5)
    [kl] = DISTILL.judge(metrics, DistillGates(heldout_kl_must_fall=0.4))
    assert not kl.passed
    assert DISTILL.judge(metrics, DistillGates(heldout_kl_must_fall=None)) == []
    [missing] = DISTILL.judge({}, DistillGates())
    assert not missing.passed
    [ce] = SFT.judge(metrics, SftGates())
    assert (ce.passed, ce.value) == (False, 1.25)
