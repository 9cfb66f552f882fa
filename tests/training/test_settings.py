"""Schedules, lengths, and the refusal of settings that contradict each other."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tasks.distill.stage import STAGE as DISTILL
from tasks.distill.stage import DistillConfig, DistillGates
from tasks.sft.stage import STAGE as SFT
from tasks.sft.stage import SftGates
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


def test_other_schedules() -> None:
    linear = OPTIMIZER.model_copy(update={"schedule": "linear"})
    assert [linear.rate(step, 10) for step in (1, 2, 6)] == pytest.approx([1.0, 1.0, 0.55])
    stable = OPTIMIZER.model_copy(update={"schedule": "warmup_stable_decay", "decay_fraction": 0.5})
    assert [stable.rate(step, 10) for step in range(10)] == pytest.approx(
        [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.82, 0.64, 0.46, 0.28]
    )


def test_weights_that_join_later_warm_up_anew() -> None:
    assert [OPTIMIZER.rate(step, 10, 4) for step in (3, 4, 5)] == pytest.approx(
        [OPTIMIZER.rate(3, 10), OPTIMIZER.rate(4, 10) / 2, OPTIMIZER.rate(5, 10)]
    )
    # In the middle of the first rise: linear from 0 again, to the peak after as many steps.
    slow = OPTIMIZER.model_copy(update={"warmup_fraction": 0.4})
    assert [slow.rate(step, 10, 2) for step in range(6)] == pytest.approx(
        [0.25, 0.5, 0.25, 0.5, 0.75, slow.rate(5, 10)]
    )
    fields = {"optimizer": OPTIMIZER, "rows_per_step": 8, "embedding_steps": 4}
    with pytest.raises(ValidationError, match="embedding_steps is 4 of 4 steps"):
        TrainingRecipe(**fields, steps=4)
    with pytest.raises(ValueError, match="only the embedding would learn"):
        TrainingRecipe(**fields, epochs=1).num_steps(32)
    assert TrainingRecipe(**fields, epochs=1).num_steps(40) == 5


def test_what_learns_in_a_step() -> None:
    fields = {"optimizer": OPTIMIZER, "rows_per_step": 8, "steps": 4}
    phased = TrainingRecipe(**fields, embedding_steps=2)
    assert [phased.learning(step) for step in range(4)] == ["embedding", "embedding", "all", "all"]
    frozen = TrainingRecipe(**fields, frozen_embedding=True)
    assert {frozen.learning(step) for step in range(4)} == {"layers"}
    with pytest.raises(ValidationError, match="frozen_embedding leaves the embedding as it is"):
        TrainingRecipe(**fields, embedding_steps=2, frozen_embedding=True)


def test_epochs_count_documents() -> None:
    fields = {"optimizer": OPTIMIZER, "rows_per_step": 8}
    for epochs, num_rows, steps in ((2, 100, 25), (1, 100, 13), (0.01, 100, 1), (0.1, 80, 1), (0.3, 80, 3)):
        assert TrainingRecipe(**fields, epochs=epochs).num_steps(num_rows) == steps
    for lengths in ({}, {"steps": 1, "epochs": 1}):
        with pytest.raises(ValidationError, match="either steps or epochs"):
            TrainingRecipe(**fields, **lengths)


def distill(**recipe: object) -> DistillConfig:
    fields = {"optimizer": {"learning_rate": 1}, "steps": 1, "rows_per_step": 12, **recipe}
    return DistillConfig.model_validate({"recipe": fields})


def test_a_profile_that_cannot_work_is_refused() -> None:
    with pytest.raises(ValidationError, match="nothing to learn"):
        distill(loss={"forward_kl": 0, "ce": 0})
    with pytest.raises(ValidationError, match="hardware 'h1000' is not in"):
        TrainingRuntime(hardware="h1000")
    assert TrainingRuntime(hardware="h200").hardware == "h200"


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
