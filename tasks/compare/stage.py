"""The stage `compare`: what a choice between models rests on, measured once a model and item by item.

Inputs: `model.<name>` for each model, `corpus` for the held-out texts. For each model: bits per byte on held-out
documents and on the fixed texts of four kinds, arithmetic, whether answers stop, and whether the chat template renders
into single special tokens. All of it compares across vocabularies.

A choice must not be made on what the result is judged by: `skip_documents` leaves out the first held-out texts, which
are the ones that the stage `evaluate` measures (`max_documents` there).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.artifacts.frozen import Frozen
from tasks.modeling.template_date import IsoDate
from tasks.runtime.declare import Runtime, Stage, StageConfig


class CompareRecipe(Frozen):
    """What is measured of every model."""

    reference: str
    """The model that the others are told apart from: a stop that it makes and another does not is lost there."""
    skip_documents: int = Field(0, ge=0)
    """Held-out texts at the start of the corpus that are kept for the evaluation."""
    max_documents: int | None = Field(None, ge=2)
    """Bits per byte on the first of the texts after those; None takes all."""
    window_tokens: int = Field(2048, ge=2)
    """Longest window for bits per byte; a model with a shorter context uses its own."""
    num_arithmetic: int = Field(300, ge=2)
    """Generated sums, differences and products, answered after others that are solved."""
    seed: int = Field(0, ge=0)
    """Of the arithmetic."""
    max_new_tokens: int = Field(64, ge=1)
    """In which an answer must come to its end to count as stopped."""
    template_date: IsoDate = "2024-07-26"
    """An ISO date: what a chat template prints as today's date."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class CompareRuntime(Runtime):
    """Another batch size changes the last bits of sums, and with them at most near-tied tokens."""

    batch_size: int = Field(8, ge=1)
    """Texts a forward pass. Their logits are held at once: 8 of 256 tokens at 152,064 rows are 1.2 GB in float32."""


class CompareConfig(StageConfig):
    """One comparison."""

    recipe: CompareRecipe
    runtime: CompareRuntime = CompareRuntime()


STAGE = Stage(name="compare", version=1, config=CompareConfig, accelerated=True)
