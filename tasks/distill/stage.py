"""Stage distill: a student in the teacher's vocabulary learns from stored logits and gold tokens.

Inputs: "student" (model) and "logits", or several "logits.<name>" that `mixture` weighs. The twin of a branch is the
same stage with cross-entropy alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from tasks.artifacts.frozen import Frozen
from tasks.runtime.declare import GateResult, Gates, Stage, at_most
from tasks.training.deepspeed_config import TrainingStageConfig
from tasks.training.settings import TrainingRecipe


class LossRecipe(Frozen):
    """Weights of the parts of a target token's loss, which are summed.

    With p the teacher and q the student, both at temperature T, over the kept entries and one bucket for the rest:
    T² · (forward_kl · KL(p ‖ q) + reverse_kl · KL(q ‖ p) + jsd · JSD(p, q)) + ce · cross-entropy on the gold token.
    """

    forward_kl: float = Field(1.0, ge=0)
    reverse_kl: float = Field(0.0, ge=0)
    jsd: float = Field(0.0, ge=0)
    jsd_beta: float = Field(0.5, gt=0, lt=1)
    """JSD is β · KL(p ‖ m) + (1 − β) · KL(q ‖ m) with m = β · p + (1 − β) · q."""
    ce: float = Field(0.0, ge=0)
    temperature: float = Field(1.0, gt=0)
    """Other than 1 only where the dump stored the teacher's full normaliser at this temperature."""
    entropy_exponent: float = 0.0
    """Its parts with a teacher weigh exp(exponent · the teacher's entropy in nats) at a token: above 0 the uncertain
    tokens count more, at 0 all alike."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if not (self.forward_kl or self.reverse_kl or self.jsd or self.ce):
            raise ValueError(
                "loss.forward_kl, loss.reverse_kl, loss.jsd and loss.ce are all 0, so there is nothing to learn; raise "
                "one of them"
            )
        return self


class DistillRecipe(TrainingRecipe):
    """A training with a teacher."""

    loss: LossRecipe = LossRecipe()
    mixture: dict[str, float] | None = None
    """Weight of each of several stores, by the name of its input: of the rows of the training it gives the part
    weight / sum of the weights. With `epochs`, an epoch is as many rows as all stores have together."""

    @field_validator("mixture")
    @classmethod
    def _weights_of_several(cls, mixture: dict[str, float] | None) -> dict[str, float] | None:
        if mixture is None:
            return None
        if len(mixture) < 2:
            raise ValueError("a mixture weighs two or more stores; leave it out for one")
        for name, weight in mixture.items():
            if not 0 < weight < float("inf"):
                raise ValueError(f"the weight of {name!r} is {weight}; give it one above 0, or leave its store out")
        return mixture


def mixture_fault(mixture: Mapping[str, float] | None, stores: Iterable[str]) -> str | None:
    """What is wrong with a mixture over these stores, in one sentence; None if nothing is."""
    given, wanted = sorted(mixture or ()), sorted(stores)
    if len(wanted) < 2:
        return f"recipe.mixture weighs {', '.join(given)}, but there is one store; leave it out" if given else None
    if given != wanted:
        said = f"weighs {', '.join(given)}" if given else "is missing"
        return f"recipe.mixture {said}, but the stores are {', '.join(wanted)}; give each of them a weight"
    return None


class DistillGates(Gates):
    """Thresholds on the held-out split."""

    heldout_kl_must_fall: float | None = Field(1.0, gt=0)
    """Largest KL to the teacher afterwards, as a part of the one before. Switch it off for a twin."""


class DistillConfig(TrainingStageConfig):
    recipe: DistillRecipe
    gates: DistillGates = DistillGates()


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


STAGE = Stage(name="distill", version=4, config=DistillConfig, judge=judge, accelerated=True)
