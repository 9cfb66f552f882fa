"""A model's weights in another form, without any training.

`architecture: qwen2` writes a Llama model as the Qwen2 model that computes the same: Qwen2 differs from Llama only in
having biases on queries, keys and values, which become zero. `keep_layers` makes a shallower model of the layers named,
which has forgotten part of what it knew and wants a training. Input: "model".
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tasks.artifacts.frozen import Frozen
from tasks.runtime.declare import Stage, StageConfig

Layer = Annotated[int, Field(ge=0)]


class ReshapeRecipe(Frozen):
    """What changes; at least one of the three."""

    architecture: Literal["qwen2"] | None = None
    """Of a Llama model; None leaves the architecture as it is."""
    keep_layers: tuple[Layer, ...] | None = Field(None, min_length=1)
    """Indices from 0 of the layers that stay, ascending; None keeps all."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the weights as they are written; None leaves each as it is."""

    @model_validator(mode="after")
    def _something_changes(self) -> Self:
        if self.architecture is None and self.keep_layers is None and self.dtype is None:
            raise ValueError("nothing is asked for; set architecture, keep_layers or dtype, or leave the stage out")
        if self.keep_layers is not None and list(self.keep_layers) != sorted(set(self.keep_layers)):
            raise ValueError(f"keep_layers is {list(self.keep_layers)}; name each layer once, in ascending order")
        return self


class ReshapeConfig(StageConfig):
    """The config block of `reshape`."""

    recipe: ReshapeRecipe


STAGE = Stage(name="reshape", version=1, config=ReshapeConfig)
