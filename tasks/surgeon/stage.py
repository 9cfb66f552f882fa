"""Gives a model another vocabulary, and gives it its own back.

`transplant`: the student's weights with the donor's tokenizer; rows of shared tokens are copied, the others are
approximated by mergekit-tokensurgeon. Inputs "student", "donor" (a small model of the teacher's vocabulary).
`revert`: the trunk as it was trained, with the embedding and head rows, the tokenizer and the configs that the student
had before. Inputs "trained", "original".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tasks.artifacts.frozen import Frozen
from tasks.runtime.declare import GateResult, Gates, Runtime, Stage, StageConfig, at_most

KINDS = ("prose", "code", "digits", "non_latin")


class TransplantRecipe(Frozen):
    """How the student comes into the donor's vocabulary."""

    mode: Literal["transplant"] = "transplant"
    method: Literal["omp", "common_interpolation", "mean", "zero"] = "omp"
    """How the rows of tokens are made that only the donor has. Of tokensurgeon's other methods, `randn` and
    `john_hewitt` are random, `landmark_pca` is too and unseeded, `stb` and `mp_rope` fail, and `subword` reads
    byte-level token names as text."""
    k: int = Field(64, ge=1, le=1024)
    """Shared tokens that an approximated row is made of (omp, common_interpolation)."""
    weight_scheme: Literal["distance_proportional", "barycentric", "least_squares"] = "least_squares"
    """How common_interpolation weighs its k neighbours."""
    cosine_similarity: bool = False
    """Whether common_interpolation looks for neighbours by angle instead of distance."""
    new_row_scale: float = Field(1.0, gt=0, le=2)
    """Factor on the approximated rows; below 1 an unhealed model predicts invented tokens less."""
    special_tokens: dict[str, str]
    """Donor token → student token whose rows it takes, such as "<|eot_id|>": "<|im_end|>". Needed for the donor's bos,
    eos, pad and every special token of its chat template, unless the student has a token of the same name. The student
    token is a token's name or a text that is one token, such as "\\n"."""
    rows: int | None = Field(None, ge=1)
    """Rows of the result; None takes the smallest that fits."""
    pad_rows_to_multiple_of: int = Field(64, ge=1, le=4096)
    """Added rows are zero: whoever computes a loss must leave them out."""

    @model_validator(mode="after")
    def _fits_together(self) -> TransplantRecipe:
        if self.method in ("mean", "zero") and self.new_row_scale != 1:
            raise ValueError(f"new_row_scale does nothing useful with method {self.method}; remove it or use omp")
        if self.rows is not None and self.rows % self.pad_rows_to_multiple_of:
            raise ValueError(
                f"rows is {self.rows}, not a multiple of pad_rows_to_multiple_of={self.pad_rows_to_multiple_of}; "
                f"change one of them"
            )
        return self


class RevertRecipe(Frozen):
    """How the trained student comes back into its own vocabulary."""

    mode: Literal["revert"]
    strategy: Literal["original_rows"] = "original_rows"
    """`original_rows`: embedding and head as they were before the transplant, everything else as trained."""


SurgeonRecipe = Annotated[TransplantRecipe | RevertRecipe, Field(discriminator="mode")]


class SurgeonRuntime(Runtime):
    """Where and in what portions rows are approximated."""

    batch_size: int = Field(512, ge=1)
    """Rows approximated at once. Another size may change their last bits."""


class SurgeonGates(Gates):
    """Largest bits per byte after, over bits per byte of the model with its own tokenizer, by kind of text."""

    max_ratio_prose: float | None = Field(2.0, gt=0)
    max_ratio_code: float | None = Field(2.0, gt=0)
    max_ratio_digits: float | None = Field(2.5, gt=0)
    max_ratio_non_latin: float | None = Field(2.5, gt=0)


class SurgeonConfig(StageConfig):
    """One surgery."""

    recipe: SurgeonRecipe
    runtime: SurgeonRuntime = SurgeonRuntime()
    gates: SurgeonGates = SurgeonGates()


def judge(metrics: Mapping[str, Any], gates: SurgeonGates) -> list[GateResult]:
    """Holds the ratios of bits per byte against the thresholds."""
    ratios = metrics.get("bits_per_byte_ratio", {})
    return [
        result
        for kind in KINDS
        for result in at_most(
            f"max_ratio_{kind}",
            ratios.get(kind),
            getattr(gates, f"max_ratio_{kind}"),
            f"bits per byte of {kind.replace('_', '-')} text after the surgery, over those before",
        )
    ]


STAGE = Stage(name="surgeon", version=1, config=SurgeonConfig, judge=judge)
