"""Quantised checkpoints: what their config.json says, what it asks of this machine, and how their scales are cut."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from tasks.artifacts.errors import BadInputError

FBGEMM = "fbgemm_fp8"
"""Meta's own FP8 checkpoints: E4M3 weights with a float32 scale an output feature, for FBGEMM's kernels."""


def quantised_as(config: PretrainedConfig) -> str | None:
    """How a checkpoint says that it is quantised, in the words of recipe.teacher.quantisation."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    method = str(settings["quant_method"])
    return "fp8" if "fp8" in method else method


def check_quantiser(config: PretrainedConfig, device: torch.device) -> None:
    """Refuses what transformers' quantiser lacks on this machine. Hundreds of gigabytes are fetched after it.

    Raises:
        BadInputError: a package is missing or does not fit the torch that is here, or the device is one that the
            quantiser does not know.
    """
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return
    method = str(settings["quant_method"])
    try:
        quantiser = AutoHfQuantizer.from_config(deepcopy(settings), pre_quantized=True)
        quantiser.validate_environment(device_map=None if device.type == "cpu" else {"": device}, weights_only=True)
        if method == FBGEMM:
            # Only the package was looked for. Built for another torch or CUDA, it fails when this import loads it.
            from transformers.integrations.fbgemm_fp8 import get_quantize_fp8_per_row

            get_quantize_fp8_per_row()
    except (ImportError, OSError, ValueError, RuntimeError, AttributeError) as error:
        package = "pip install -e '.[worker,fp8]' on GPUs from H100 on" if method == FBGEMM else "install what it names"
        raise BadInputError(
            f"the teacher's checkpoint is quantised as {method}, which transformers cannot compute on this machine's "
            f"{device} ({' '.join(str(error).split())}); {package}, or serve the teacher with vLLM "
            f"(recipe.teacher.kind served)"
        ) from error


def whole_scales(config: PretrainedConfig) -> dict[str, str]:
    """Rules that a tensor-parallel plan needs for FBGEMM's scales; empty for every other checkpoint.

    transformers 5.23 cuts all of a layer that is cut by input features along the last side, its weight_scale
    (output features, 1) too, of which every rank but the first would hold nothing. Each rank needs all of it.
    """
    settings = getattr(config, "quantization_config", None)
    if settings is None or settings["quant_method"] != FBGEMM:
        return {}
    text = config.get_text_config()
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(text)]
    prefix = model.base_model_prefix
    left_out = list(settings.get("modules_to_not_convert") or ())
    return {
        f"{prefix}.{rule}.weight_scale": "replicate"
        for rule, style in (text.base_model_tp_plan or {}).items()
        if style.startswith("rowwise")
        and any(
            should_convert_module(f"{prefix}.{rule.replace('*', str(layer))}", left_out)
            for layer in range(text.num_hidden_layers)
        )
    }
