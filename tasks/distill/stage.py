"""Stage distill: a student in the teacher's vocabulary learns from stored logits and gold tokens.

Inputs: "student" (model), "logits". The twin of a branch is the same stage with kd = 0 and ce = 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from tasks.artifacts.frozen import Frozen
from tasks.runtime.declare import GateResult, Gates, Stage, StageConfig, at_most
from tasks.training.settings import TrainingRecipe, TrainingRuntime, check_split


class LossRecipe(Frozen):
    """Weights a target token: kd · T² · KL(teacher ‖ student at T) + ce · cross-entropy on the gold token."""

    kd: float = Field(1.0, ge=0)
    ce: float = Field(0.0, ge=0)
    temperature: float = Field(1.0, gt=0)
    """Other than 1 only where the dump stored the teacher's full normaliser at this temperature."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if self.kd + self.ce == 0:
            raise ValueError("loss.kd and loss.ce are both 0, so there is nothing to learn; raise one of them")
        return self


class DistillRecipe(TrainingRecipe):
    """A training with a teacher."""

    loss: LossRecipe = LossRecipe()


class DistillGates(Gates):
    """Thresholds on the held-out split."""

    heldout_kl_must_fall: float | None = Field(1.0, gt=0)
    """Largest KL to the teacher afterwards, as a part of the one before. Switch it off for a twin."""


class DistillConfig(StageConfig):
    recipe: DistillRecipe
    runtime: TrainingRuntime = TrainingRuntime()
    gates: DistillGates = DistillGates()

    @model_validator(mode="after")
    def _even_split(self) -> Self:
        check_split(self.recipe, self.runtime)
        return self


def judge(metrics: Mapping[str, Any], gates: DistillGates) -> list[GateResult]:
    """Held-out KL after over before."""
    start, end = metrics.get("heldout_kl_start"), metrics.get("heldout_kl")
    ratio = end / start if start and end is not None else None
    return at_most(
        "heldout_kl_must_fall",
        ratio,
        gates.heldout_kl_must_fall,
        "KL to the teacher on held-out text after the training, divided by the one before",
    )


STAGE = Stage(name="distill", version=1, config=DistillConfig, judge=judge)
