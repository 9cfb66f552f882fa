"""FBGEMM's two operators that transformers' FP8 layers call, in plain torch, for machines without its GPU kernels.

Their schemas are those of fbgemm-gpu-genai 1.8.0; the arithmetic is the one of its documentation: E4M3 numbers with one
scale a row on either side, products added in float32.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

LARGEST = torch.finfo(torch.float8_e4m3fn).max
_LIBRARY = torch.library.Library("fbgemm", "FRAGMENT")


def declare_fbgemm() -> None:
    """Makes torch.ops.fbgemm.quantize_fp8_per_row and f8f8bf16_rowwise callable on a CPU. Once a process."""
    # Where the package is installed, this loads it, and it declares them.
    importlib.import_module("transformers.integrations.fbgemm_fp8")
    if not hasattr(torch.ops.fbgemm, "f8f8bf16_rowwise"):
        _LIBRARY.define(
            "quantize_fp8_per_row(Tensor input, Tensor? bs=None, Tensor? scale_ub=None, ScalarType? output_dtype=None, "
            "bool stochastic_rounding=False) -> Tensor[]"
        )
        _LIBRARY.define(
            "f8f8bf16_rowwise(Tensor XQ, Tensor WQ, Tensor x_scale, Tensor w_scale, Tensor? bias=None, "
            "bool use_fast_accum=True) -> Tensor"
        )
    _LIBRARY.impl("quantize_fp8_per_row", _quantize, "CPU")
    _LIBRARY.impl("f8f8bf16_rowwise", _product, "CPU")


def _quantize(
    input: Tensor,
    bs: Tensor | None = None,
    scale_ub: Tensor | None = None,
    output_dtype: torch.dtype | None = None,
    stochastic_rounding: bool = False,
) -> list[Tensor]:
    """FP8 (N, D) and float32 scales (N,)."""
    top_N1 = input.float().abs().amax(1, keepdim=True).clamp(min=1e-12)
    if scale_ub is not None:
        top_N1 = torch.minimum(top_N1, scale_ub)
    scale_N1 = top_N1 / LARGEST
    return [(input.float() / scale_N1).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale_N1[:, 0]]


def _product(
    XQ: Tensor, WQ: Tensor, x_scale: Tensor, w_scale: Tensor, bias: Tensor | None = None, use_fast_accum: bool = True
) -> Tensor:
    """bfloat16 (N, O) of FP8 (N, D) and (O, D)."""
    out_NO = (XQ.float() @ WQ.float().T) * x_scale[:, None] * w_scale.reshape(1, -1)
    return (out_NO if bias is None else out_NO + bias).bfloat16()


def quantise_with_fbgemm(directory: Path, left_out: str = "self_attn") -> None:
    """Turns a saved model's layers into what Meta's FP8 checkpoints hold: feed-forward alone, bfloat16 else."""
    file = directory / "model.safetensors"
    tensors, skipped = {}, ["lm_head"]
    for name, weight_RC in load_file(file).items():
        tensors[name] = weight_RC.bfloat16()
        if name.endswith("_proj.weight") and left_out not in name:
            quantised_RC, scale_R = _quantize(weight_RC)
            tensors |= {name: quantised_RC, f"{name}_scale": scale_R[:, None].contiguous()}
        elif left_out in name and name.endswith(".weight"):
            skipped.append(name.removesuffix(".weight"))
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config["dtype"] = "bfloat16"
    config["quantization_config"] = {
        "quant_method": "fbgemm_fp8",
        "activation_scale_ub": 1200.0,
        "modules_to_not_convert": skipped,
    }
    (directory / "config.json").write_text(json.dumps(config))
