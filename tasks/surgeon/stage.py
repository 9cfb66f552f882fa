"""Gives a model another vocabulary, and gives it its own back.

`transplant`: the student's weights with the donor's tokenizer; rows of shared tokens are copied, the others are made by
a named method. Inputs "student", "donor" (a small model of the teacher's vocabulary; for `composed` its tokenizer).
`revert`: the trunk as it was trained, with the embedding and head rows, the tokenizer and the configs that the student
had before. Inputs "trained", "original".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tasks.artifacts.frozen import Frozen
from tasks.runtime.declare import GateResult, Gates, Runtime, Stage, StageConfig
from tasks.runtime.text_gates import judge_ratios, judge_stops

_METHODS_THAT_READ: dict[str, tuple[str, ...]] = {
    "k": ("omp_anchored", "omp", "common_interpolation"),
    "num_anchors": ("omp_anchored",),
    "weight_scheme": ("common_interpolation",),
    "cosine_similarity": ("common_interpolation",),
    "composed_kinds": ("omp_anchored", "omp", "common_interpolation", "mean", "zero"),
    "new_row_scale": ("omp_anchored", "omp", "common_interpolation"),
}
_STRATEGIES_THAT_READ: dict[str, tuple[str, ...]] = {
    "special_tokens": ("shared_trained", "delta_transplant", "back_transplant"),
    "k": ("delta_transplant", "back_transplant"),
    "num_anchors": ("delta_transplant", "back_transplant"),
}


class Composition(Frozen):
    """A composed row: the weighted mean of the rows of the token's pieces, times `scale`.

    A decay is the weight of a piece over that of the next one: 1 is the plain mean, 0.5 gives the last piece half of
    the weight or more. The defaults were best on SmolLM2's weights and Qwen2.5's tokenizer (tasks/surgeon/README.md).
    """

    scale: float = Field(0.9, gt=0, le=2)
    """Below 1 an unhealed model predicts composed tokens less."""
    tied_decay: float = Field(0.7, gt=0, le=2)
    """Where one matrix is embedding and head."""
    embedding_decay: float = Field(0.5, gt=0, le=2)
    head_decay: float = Field(1.0, gt=0, le=2)


class TransplantRecipe(Frozen):
    """How the student comes into the donor's vocabulary. A setting that the recipe does not read is refused."""

    mode: Literal["transplant"] = "transplant"
    method: Literal["omp_anchored", "composed", "omp", "common_interpolation", "mean", "zero"] = "omp_anchored"
    """How the rows of tokens are made that only the donor has. `composed`: from the student's rows for the pieces of
    the token's text; needs only the donor's tokenizer. `omp_anchored`: orthogonal matching pursuit of the donor's row
    over the donor's rows of the `num_anchors` most used shared tokens, the coefficients then applied to the student's
    rows. The others are mergekit-tokensurgeon's. Of those left out there, `randn` and `john_hewitt` are random,
    `landmark_pca` is too and unseeded, `stb` and `mp_rope` fail, and `subword` reads byte-level token names as text."""
    composed_kinds: tuple[str, ...] = ()
    """Kinds of tokens (tasks/surgeon/kinds.py) that are composed whatever the method, such as "digits"."""
    k: int = Field(64, ge=1, le=1024)
    """Shared tokens that an approximated row is made of (omp_anchored, omp, common_interpolation)."""
    num_anchors: int = Field(8192, ge=1)
    """Shared tokens that omp_anchored chooses from; all of them where there are fewer."""
    weight_scheme: Literal["distance_proportional", "barycentric", "least_squares"] = "least_squares"
    """How common_interpolation weighs its k neighbours."""
    cosine_similarity: bool = False
    """Whether common_interpolation looks for neighbours by angle instead of distance."""
    new_row_scale: float = Field(1.0, gt=0, le=2)
    """Factor on the approximated rows; below 1 an unhealed model predicts invented tokens less."""
    composition: Composition = Composition()
    """How the pieces of composed tokens are weighed."""
    special_tokens: dict[str, str]
    """Donor token → student token whose rows it takes, such as "<|eot_id|>": "<|im_end|>". Needed for the donor's bos,
    eos, pad, the ends that its generation_config.json lists and every special token of its chat template, unless the
    student has a token of the same name; an end takes a special token. The student token is a token's name or a text
    that is one token, such as "\\n"."""
    rows: int | None = Field(None, ge=1)
    """Rows of the result; None takes the smallest multiple of `pad_rows_to_multiple_of` that fits."""
    pad_rows_to_multiple_of: int = Field(64, ge=1, le=4096)
    """Where `rows` is left out. Added rows are zero: whoever computes a loss must leave them out."""

    @model_validator(mode="after")
    def _fits_together(self) -> TransplantRecipe:
        _refuse_unread(self, "method", self.method, _METHODS_THAT_READ)
        if self.composition != Composition() and self.method != "composed" and not self.composed_kinds:
            raise ValueError(
                f"composition is given, but method {self.method} without composed_kinds composes no token of text; "
                f"remove it or name the kinds"
            )
        if self.method == "omp_anchored" and self.k > self.num_anchors:
            raise ValueError(f"k is {self.k}, more than num_anchors={self.num_anchors}; lower k or raise num_anchors")
        if self.rows is not None and self.pad_rows_to_multiple_of != _default(self, "pad_rows_to_multiple_of"):
            raise ValueError(
                "pad_rows_to_multiple_of is given, but with rows there is nothing for it to decide; remove one of them"
            )
        return self


class RevertRecipe(Frozen):
    """How the trained student comes back into its own vocabulary. What the strategy does not read is refused."""

    mode: Literal["revert"]
    strategy: Literal["original_rows", "shared_trained", "delta_transplant", "back_transplant"] = "original_rows"
    """What embedding and head get; everything else is as trained. A token is shared if both vocabularies have it by its
    bytes, a special one by its name.
    `original_rows`: what they were before the transplant.
    `shared_trained`: shared tokens the trained rows, the others their original ones.
    `delta_transplant`: shared tokens the trained rows; each other its original row plus what training changed on the
    shared tokens that its original row is made of: r + sum of c_i * (trained_i - original_i), the c by orthogonal
    matching pursuit of r over the original rows of shared tokens.
    `back_transplant`: shared tokens the trained rows; each other sum of c_i * trained_i.
    Padding rows and special tokens that only the original has keep their original rows in all of them."""
    special_tokens: dict[str, str] = Field(default_factory=dict)
    """The map of the transplant, for the strategies that bring trained rows back: the original's special tokens then
    get the trained rows of the tokens that were mapped to them. Without it they keep their original rows, beside which
    the trained ones of text may have grown; README.md has figures."""
    k: int = Field(64, ge=1, le=1024)
    """Shared tokens that a row is made of (delta_transplant, back_transplant)."""
    num_anchors: int = Field(8192, ge=1)
    """Shared tokens that the k are chosen from, the most used ones; all of them where there are fewer."""

    @model_validator(mode="after")
    def _fits_together(self) -> RevertRecipe:
        _refuse_unread(self, "strategy", self.strategy, _STRATEGIES_THAT_READ)
        if self.k > self.num_anchors:
            raise ValueError(f"k is {self.k}, more than num_anchors={self.num_anchors}; lower k or raise num_anchors")
        return self

    def by(self, strategy: str, special_tokens: Mapping[str, str]) -> RevertRecipe:
        """The recipe by another strategy, whose settings keep their values as far as it reads them."""
        values = {**self.model_dump(), "strategy": strategy, "special_tokens": dict(special_tokens)}
        return RevertRecipe.model_validate({name: values[name] for name in values.keys() - unread_by(strategy)})


def unread_by(strategy: str) -> set[str]:
    """The settings that a reversion by this strategy does not read."""
    return {name for name, strategies in _STRATEGIES_THAT_READ.items() if strategy not in strategies}


def _refuse_unread(recipe: Frozen, field: str, choice: str, readers: Mapping[str, tuple[str, ...]]) -> None:
    """Refuses a setting that changes the key and not the result. One that has its default says nothing."""
    for name, choices in readers.items():
        if choice not in choices and getattr(recipe, name) != _default(recipe, name):
            raise ValueError(
                f"{name} is given, but {field} {choice} does not read it; remove it, or set {field} to "
                f"{' or '.join(choices)}"
            )


def _default(recipe: Frozen, name: str) -> Any:
    return type(recipe).model_fields[name].get_default(call_default_factory=True)


SurgeonRecipe = Annotated[TransplantRecipe | RevertRecipe, Field(discriminator="mode")]


class SurgeonRuntime(Runtime):
    """Where and in what portions rows are approximated."""

    batch_size: int | None = Field(None, ge=1)
    """Rows approximated at once; None takes what is fast on the device. Another size may change their last bits."""


class SurgeonGates(Gates):
    """`max_ratio_`: largest bits per byte after, over those before, by kind of text. Each model reads the text with its
    own tokenizer; before a reversion is what the student was before its transplant."""

    max_ratio_prose: float | None = Field(2.0, gt=0)
    max_ratio_code: float | None = Field(2.0, gt=0)
    max_ratio_digits: float | None = Field(2.5, gt=0)
    max_ratio_non_latin: float | None = Field(2.5, gt=0)
    max_stops_lost: float | None = Field(0.25, ge=0, le=1)
    """Of the prompts at which the model stopped before, the largest share at which it does not after."""


class SurgeonConfig(StageConfig):
    """One surgery."""

    recipe: SurgeonRecipe
    runtime: SurgeonRuntime = SurgeonRuntime()
    gates: SurgeonGates = SurgeonGates()


def judge(metrics: Mapping[str, Any], gates: SurgeonGates) -> list[GateResult]:
    """Holds the ratios of bits per byte and the stops lost against the thresholds."""
    return [
        *judge_ratios(
            metrics.get("bits_per_byte_ratio", {}),
            gates,
            "bits per byte of {} text after the surgery, over those before",
        ),
        *judge_stops(
            metrics.get("stops"),
            gates.max_stops_lost,
            "share of the chat prompts that the model stopped at before the surgery and does not stop at after it",
        ),
    ]


STAGE = Stage(name="surgeon", version=5, config=SurgeonConfig, judge=judge, accelerated=True)
