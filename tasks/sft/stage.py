"""Stage sft: a model learns the assistant turns of instruction documents by cross-entropy.

Inputs: "model", "corpus" (rows of the instructions, in the model's tokenizer).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from tasks.runtime.declare import GateResult, Gates, Stage, at_most
from tasks.training.deepspeed_config import TrainingStageConfig
from tasks.training.settings import TrainingRecipe


class SftRecipe(TrainingRecipe):
    """A training without a teacher."""


class SftGates(Gates):
    """Thresholds on the held-out split."""

    heldout_ce_must_not_rise: float | None = Field(1.0, gt=0)
    """Largest cross-entropy afterwards, as a part of the one before."""


class SftConfig(TrainingStageConfig):
    recipe: SftRecipe
    gates: SftGates = SftGates()


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


STAGE = Stage(name="sft", version=3, config=SftConfig, judge=judge)
