"""Stage sft: a model learns the assistant turns of instruction documents by cross-entropy.

Inputs: "model", "corpus" (rows of the instructions, in the model's tokenizer), and where the recipe has `replay` also
"replay": a store of logits, or a corpus, in the same vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from pydantic import Field, SerializeAsAny, field_validator

from tasks.artifacts.frozen import Frozen
from tasks.runtime.declare import GateResult, Gates, Stage, at_most, recipe_with
from tasks.training.deepspeed_config import TrainingStageConfig
from tasks.training.settings import TrainingRecipe


class SftRecipe(TrainingRecipe):
    """A training without a teacher."""


class Replay(Frozen):
    """What of an earlier training is read again, so that it is not forgotten."""

    weight: float = Field(gt=0, lt=1)
    """Part of the rows of the training; the others are instructions. `epochs` are of the instructions, and replayed
    rows come on top: with 0.2 an epoch of 100 instructions is a training of 125 rows, in whole steps."""
    forward_kl: float = Field(1.0, ge=0)
    """Weight of the KL to the teacher at a replayed target, beside its cross-entropy of weight 1; a corpus has no
    teacher."""

    def rows_of_epoch(self, instructions: float) -> int:
        """Rows of a training, rounded up, in which each of so many instructions is read."""
        return math.ceil(Fraction(str(instructions)) / (1 - Fraction(str(self.weight))))


class ReplayingSftRecipe(SftRecipe):
    """A training on instructions and, in between, on rows of an earlier one. A class of its own: without replay the
    keys are those of SftRecipe."""

    replay: Replay


def recipe_of(values: Mapping[str, Any]) -> SftRecipe:
    """The recipe that these fields are of."""
    return (ReplayingSftRecipe if "replay" in values else SftRecipe).model_validate(values)


class SftGates(Gates):
    """Thresholds on the held-out split."""

    heldout_ce_must_not_rise: float | None = Field(1.0, gt=0)
    """Largest cross-entropy afterwards, as a part of the one before. Of a fine-tuning that a choice follows it is not
    judged unless a profile sets it."""


class SftConfig(TrainingStageConfig):
    recipe: SerializeAsAny[SftRecipe]
    gates: SftGates = SftGates()

    @field_validator("recipe", mode="before")
    @classmethod
    def _with_replay(cls, values: Any) -> Any:
        return recipe_with("replay", values, recipe_of)


def judge(metrics: Mapping[str, Any], gates: SftGates) -> list[GateResult]:
    """Held-out cross-entropy after over before."""
    start, end = metrics.get("heldout_ce_start"), metrics.get("heldout_ce")
    ratio = end / start if start and end is not None else None
    return at_most(
        "heldout_ce_must_not_rise",
        ratio,
        gates.heldout_ce_must_not_rise,
        "cross-entropy of held-out answers after the training, divided by the one before",
    )


STAGE = Stage(name="sft", version=5, config=SftConfig, judge=judge, accelerated=True)
