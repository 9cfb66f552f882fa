"""What a model is and how well it predicts text, in one record."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from tasks.modeling.bits_per_byte import bits_per_byte
from tasks.modeling.model_files import load_causal_lm, resolve_device, stored_dtype, vocabulary_weights
from tasks.modeling.tokenizer_files import load_tokenizer, real_vocab_size


class ModelFacts(NamedTuple):
    """Of one model."""

    architecture: str
    """transformers' model_type."""
    num_layers: int
    num_parameters: int
    """Tied matrices once."""
    num_rows: int
    num_tokens: int
    """Of the tokenizer; rows beyond them are padding."""
    bits: dict[str, float]
    """Bits per byte by kind of text (tasks/modeling/bits_per_byte.py)."""


def model_facts(directory: Path) -> ModelFacts:
    """Loads a model directory, on the GPU if there is one, and measures it.

    Raises:
        BadInputError: it is no whole model, or its logits are not finite.
    """
    tokenizer = load_tokenizer(directory)
    device = resolve_device("auto")
    # float32 on a CPU: some multiply bfloat16 45 times slower.
    dtype = stored_dtype(directory) if device.type == "cuda" else torch.float32
    model = load_causal_lm(directory, dtype=dtype, device=device)
    return ModelFacts(
        architecture=str(model.config.model_type),
        num_layers=model.config.num_hidden_layers,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_rows=vocabulary_weights(model)[0].shape[0],
        num_tokens=real_vocab_size(tokenizer),
        bits=bits_per_byte(model, tokenizer),
    )
