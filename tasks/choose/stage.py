"""The stage `choose`: which of several models goes on, such as the fusion or what fine-tuning made of it.

Inputs: `model.<name>` for each candidate, `corpus` for held-out texts, `instructions` (a corpus in the candidates'
vocabulary) for held-out conversations. The artifact is the chosen model, file by file, and choice.json with what was
measured of each.

The choice is made on what the evaluation does not read: held-out texts after its own (`skip_documents`) and cloze items
of them, conversations that were held out of the fine-tuning, and exercises of the split `dev`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tasks.artifacts.frozen import Frozen
from tasks.benchmarks.declare import ClozeTasks, ExerciseTasks
from tasks.modeling.template_date import IsoDate
from tasks.runtime.declare import GateResult, Gates, Runtime, Stage, StageConfig, at_least

CHOICE = "choice.json"


class ChooseRecipe(Frozen):
    """What is measured of every candidate, and what another one may lose against the default."""

    default: str = "fused"
    """The candidate that goes on unless another is better by the rule of tasks/choose/rule.py."""
    skip_documents: int = Field(0, ge=0)
    """Held-out texts at the start of the corpus that are the evaluation's; the DAG takes them from there."""
    max_documents: int = Field(60, ge=2)
    """Texts after those."""
    max_conversations: int = Field(200, ge=2)
    """Held-out conversations of `instructions`."""
    exercises: ExerciseTasks | None = None
    """Answered by greedy decoding; left out where the recipe is about something else."""
    cloze: ClozeTasks | None = None
    """Made of the same texts as the bits per byte."""
    window_tokens: int = Field(2048, ge=2)
    max_new_tokens: int = Field(64, ge=1)
    """In which an answer must come to its end to count as stopped."""
    template_date: IsoDate = "2024-07-26"
    """An ISO date: what a chat template prints as today's date."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_text_loss: float = Field(0.02, ge=0)
    """By which part the bits per byte of texts may exceed the default's: 0.02 is 2 %."""
    max_stops_lost: float = Field(0.25, ge=0, le=1)
    """Share of the prompts at which the default stops and another one may go on for ever."""

    @model_validator(mode="after")
    def _not_the_test(self) -> Self:
        if self.exercises is not None and self.exercises.split != "dev":
            raise ValueError(
                "exercises are of the split test, which the evaluation reports; set exercises.split to dev"
            )
        return self


class ChooseRuntime(Runtime):
    """Another batch size changes the last bits of sums, and with them at most near-tied tokens."""

    batch_size: int = Field(8, ge=1)
    """Texts a forward pass. Their logits are held at once: 8 of 256 tokens at 152,064 rows are 1.2 GB in float32."""


class ChooseGates(Gates):
    """When the chosen model is worth going on with."""

    min_stops: int | None = Field(1, ge=1)
    """Prompts that it answers to an end."""


class ChooseConfig(StageConfig):
    """One choice."""

    recipe: ChooseRecipe = ChooseRecipe()
    runtime: ChooseRuntime = ChooseRuntime()
    gates: ChooseGates = ChooseGates()

    def after(self, documents: int) -> Self:
        """Itself without the first texts, of which the evaluation measures so many."""
        return self.model_copy(update={"recipe": self.recipe.model_copy(update={"skip_documents": documents})})


def judge(metrics: Mapping[str, Any], gates: ChooseGates) -> list[GateResult]:
    """Whether the chosen model can be used at all."""
    return at_least(
        "min_stops",
        metrics.get("chosen_stops"),
        gates.min_stops,
        "prompts that the chosen model answers to an end; no number where its logits are not finite or its chat "
        "template is broken",
    )


STAGE = Stage(name="choose", version=2, config=ChooseConfig, judge=judge, accelerated=True)
