"""A GGUF file's weights and tokenizer as a plain model directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.modeling.model_files import save_causal_lm
from tasks.modeling.tokenizer_files import save_tokenizer


def unpack_gguf(file: Path, target: Path, dtype_name: str) -> None:
    """Dequantises `file` and writes config, safetensors in the given dtype, tokenizer and generation config.

    transformers marks what it loads from GGUF as quantised and then refuses to train or save it, so the weights move
    into a fresh model of the same config without that mark.
    """
    dtype: torch.dtype = getattr(torch, dtype_name)
    options: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}
    try:
        loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options)
    except ImportError as error:
        raise BadInputError(f"reading {file.name} needs the package gguf; pip install -e '.[smollm2]'") from error
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise BadInputError(f"{file.name} has a tokenizer without the form of a tokenizer.json; take another file")
    config = AutoConfig.from_pretrained(file.parent, **options)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    config.dtype = dtype
    model = type(loaded)(config).to(dtype)  # type: ignore[arg-type]
    model.load_state_dict(loaded.state_dict())
    save_causal_lm(model, target)
    save_tokenizer(tokenizer, target)
