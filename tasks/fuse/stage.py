"""Merges branches that share one vocabulary, by any of mergekit's methods.

Inputs: "base" and "branch.<name>" for each branch. The recipe reads like a mergekit file in which models are called
`base` or by the names of their branches; gradients and filters mean what they mean there. The published fusion of
Medius is

    merge_method: ties
    models:
      llama: {parameters: {density: 1.0, weight: 1.0}}
      qwen:
        parameters:
          density: 0.66
          weight:
            - {filter: mlp, value: [0, 0.3, 0.6, 0.1]}
            - {filter: self_attn, value: [0, 0, 0.2, 0.1]}
            - {value: 0.1}
    parameters: {normalize: false, int8_mask: true}
    dtype: float32
    out_dtype: bfloat16
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from tasks.artifacts.frozen import Frozen
from tasks.fuse.methods import MERGE_METHODS, check_base_is_written, check_inputs, check_parameters
from tasks.runtime.declare import GateResult, Gates, Runtime, Stage, StageConfig
from tasks.runtime.text_gates import judge_ratios, judge_stops

BASE = "base"
FUSED = "fused"
"""What the result is called beside the models that it was made of."""

Dtype = Literal["float32", "bfloat16", "float16"]
Scalar = bool | float | str
ScalarOrGradient = Scalar | tuple[Scalar, ...]


class Filtered(Frozen):
    """A value for the tensors whose name contains `filter`; without a filter, for all that no entry before it took."""

    value: ScalarOrGradient
    filter: str | None = None


Setting = ScalarOrGradient | Filtered | tuple[Filtered, ...]
"""One number, a gradient over the layers, or either by filter."""


class Branch(Frozen):
    """How one model takes part."""

    parameters: dict[str, Setting] = Field(default_factory=dict)


class FuseRecipe(Frozen):
    """One merge."""

    merge_method: Literal[MERGE_METHODS]  # type: ignore[valid-type]
    models: dict[str, Branch] = Field(min_length=1)
    """By branch name; `base` may be among them. Their order means nothing and is in no key: what a method such as slerp
    starts from is its base_model."""
    base_model: str | None = BASE
    """`base`, a branch's name, or None for no base. A method that does not need one wants it written."""
    parameters: dict[str, Setting] = Field(default_factory=dict)
    """The method's own, such as normalize and int8_mask, and defaults for all models."""
    dtype: Dtype = "float32"
    """In which the arithmetic is done."""
    out_dtype: Dtype = "bfloat16"
    chat_from: str = BASE
    """The model whose tokenizer_config, chat template, generation_config and end tokens the result gets. All models
    have the same ids; a merge of chat models onto a base that was never one must take a branch's, or it never stops."""
    seed: int = Field(0, ge=0)
    """For the methods that drop entries at random."""

    @model_validator(mode="after")
    def _names_are_known(self) -> FuseRecipe:
        for name in self.models:
            if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name):
                raise ValueError(f"models has the name {name!r}; use lower-case letters, digits, and _ . - between")
            if name == FUSED:
                raise ValueError(f"models has the name {name!r}, which is the result's; use another one")
        for field in ("base_model", "chat_from"):
            name = getattr(self, field)
            if name not in (None, BASE, *self.models):
                raise ValueError(f"{field} is {name!r}, which is neither {BASE} nor one of {', '.join(self.models)}")
        return self

    @model_validator(mode="after")
    def _mergekit_can_merge_it(self) -> FuseRecipe:
        check_base_is_written(self.merge_method, self.model_fields_set)
        check_inputs(self.merge_method, self.models, self.base_model)
        of_models = {name: branch.parameters for name, branch in self.models.items()}
        check_parameters(self.merge_method, of_models, self.parameters, self.base_model)
        return self

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that must come as inputs "branch.<name>"."""
        return tuple(name for name in self.models if name != BASE)

    def mergekit_config(self) -> dict[str, Any]:
        """The recipe as a mergekit configuration, with models by name.

        Models are in the order of their names. All methods tell the base from the others by base_model and give weights
        and the like to a model by its name, but dare and della draw what they drop for one model after the other: two
        recipes that differ in nothing but an order would have one key and two results.
        """
        dumped = self.model_dump(mode="json", exclude_none=True, exclude={"models", "chat_from", "seed"})
        models = [
            {"model": name, **branch.model_dump(mode="json", exclude_none=True)}
            for name, branch in sorted(self.models.items())
        ]
        return {**dumped, "models": models}


class FuseRuntime(Runtime):
    """Where the merge is computed."""

    low_cpu_memory: bool = False
    """Keep intermediate tensors on the GPU."""


class FuseGates(Gates):
    """`max_ratio_`: largest bits per byte of the fusion, over those of the branch that is best on that kind of text.

    Another branch may be the best on each kind, so that 1 asks for what no branch reaches on all. A few percent are the
    price of a merge; more than that, and the branch alone would be the better start of the fine-tuning.
    """

    max_ratio_prose: float | None = Field(1.15, gt=0)
    max_ratio_code: float | None = Field(1.15, gt=0)
    max_ratio_digits: float | None = Field(1.25, gt=0)
    max_ratio_non_latin: float | None = Field(1.25, gt=0)
    max_stops_lost: float | None = Field(0.25, ge=0, le=1)
    """Of the prompts at which the model that `chat_from` names stopped, the largest share at which the fusion does
    not."""


class FuseConfig(StageConfig):
    """One fusion."""

    recipe: FuseRecipe
    runtime: FuseRuntime = FuseRuntime()
    gates: FuseGates = FuseGates()


def judge(metrics: Mapping[str, Any], gates: FuseGates) -> list[GateResult]:
    """Holds the fusion against its branches."""
    return [
        *judge_ratios(
            metrics.get("bits_per_byte_ratio", {}),
            gates,
            "bits per byte of {} text of the fusion, over those of the branch that is best on it",
        ),
        *judge_stops(
            metrics.get("stops"),
            gates.max_stops_lost,
            "share of the chat prompts that the model of chat_from stops at and the fusion does not stop at",
        ),
    ]


STAGE = Stage(name="fuse", version=2, config=FuseConfig, judge=judge, accelerated=True)
