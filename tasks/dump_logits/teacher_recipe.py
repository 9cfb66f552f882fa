"""A teacher that the dump loads itself, as a profile declares it."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from tasks.artifacts.frozen import Frozen


class TeacherRecipe(Frozen):
    """How the teacher computes; each of these changes its numbers."""

    dtype: Literal["float32", "bfloat16"]
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    quantisation: Literal["fp8", "compressed-tensors", "torchao", "bitsandbytes", "gptq", "awq"] | None = None
    """Must say what the checkpoint's own quantization_config says, fp8 standing for all methods with that in their
    name; transformers' own quantiser loads it, and says which package it needs."""

    @model_validator(mode="after")
    def _kernels_exist(self) -> TeacherRecipe:
        if self.dtype == "float32" and self.attention == "flash_attention_2":
            raise ValueError("flash_attention_2 has no float32 kernel; use dtype bfloat16 or attention sdpa")
        if self.dtype == "float32" and self.quantisation is not None:
            raise ValueError("a quantised teacher computes in bfloat16; set dtype bfloat16")
        return self
