"""How many weights a causal language model has and how many bytes they take, from its config.json alone.

Entries of one layer, with d hidden, m inner width, q = heads × head_dim, c = key-value heads × head_dim:

    q, k, v, o projections   d q + 2 d c + q d        gate, up, down   3 d m        two norms   2 d
    Qwen2's biases           q + 2 c

Besides the layers: the embedding (rows × d), the head (as much again, unless it is tied to the embedding), one norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.artifacts.frozen import Frozen
from tasks.planning.flops import ModelShape, model_shape

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8": 1}
"""Bytes of an entry."""


class Architecture(Frozen):
    """The sizes of a model."""

    model_type: str
    num_layers: int
    hidden: int
    inner: int
    query_width: int
    kv_width: int
    """Heads (or key-value heads) times head dimension."""
    rows: int
    """Of embedding and head, padding included."""
    tied: bool
    dtype: str = "bfloat16"
    """Of the checkpoint's entries that are not quantised."""
    quantised: int = 0
    """Entries of the layers' matrices that the checkpoint holds in 8 bits."""
    shape: ModelShape

    @property
    def layer(self) -> int:
        """Entries of one layer."""
        biases = self.query_width + 2 * self.kv_width if self.model_type == "qwen2" else 0
        return self.shape.layer_weights // self.num_layers + 2 * self.hidden + biases

    @property
    def end(self) -> int:
        """Entries of the embedding, or of the head."""
        return self.rows * self.hidden

    @property
    def ends(self) -> int:
        """Entries of embedding and head together."""
        return self.end if self.tied else 2 * self.end

    @property
    def parameters(self) -> int:
        """All entries."""
        return self.num_layers * self.layer + self.ends + self.hidden

    def bytes(self, dtype: str | None = None) -> float:
        """Of all weights in `dtype`, or as the checkpoint has them. What is quantised stays in 8 bits."""
        return (self.parameters - self.quantised) * BYTES[dtype or self.dtype] + self.quantised

    def with_rows(self, rows: int) -> Architecture:
        """The same with another vocabulary."""
        shape = self.shape.model_copy(update={"head_weights": rows * self.hidden})
        return self.model_copy(update={"rows": rows, "shape": shape})

    def with_layers(self, num_layers: int) -> Architecture:
        """The same with so many of its layers."""
        shape = self.shape.model_copy(
            update={
                "layer_weights": self.shape.layer_weights // self.num_layers * num_layers,
                "attention_width": num_layers * self.query_width,
            }
        )
        return self.model_copy(update={"num_layers": num_layers, "shape": shape})


def architecture(config: Mapping[str, Any]) -> Architecture:
    """Reads a transformers config.json.

    Raises:
        BadInputError: an architecture that tasks/planning/flops.py does not know, or a size is missing.
    """
    shape = model_shape(config)
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    return Architecture(
        model_type=config["model_type"],
        num_layers=config["num_hidden_layers"],
        hidden=hidden,
        inner=config["intermediate_size"],
        query_width=heads * head_dim,
        kv_width=(config.get("num_key_value_heads") or heads) * head_dim,
        rows=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", False)),
        dtype=_dtype(config),
        quantised=_quantised(config, head_dim),
        shape=shape,
    )


def _dtype(config: Mapping[str, Any]) -> str:
    named = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    return named if named in BYTES else "bfloat16"


def _quantised(config: Mapping[str, Any], head_dim: int) -> int:
    settings = config.get("quantization_config")
    if not isinstance(settings, Mapping) or "fp8" not in str(settings.get("quant_method", "")):
        return 0
    skipped: Sequence[str] = settings.get("modules_to_not_convert") or settings.get("ignore") or ()
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    query = hidden * heads * head_dim
    key = hidden * (config.get("num_key_value_heads") or heads) * head_dim
    matrices = {
        **{f"self_attn.{name}_proj": size for name, size in (("q", query), ("k", key), ("v", key), ("o", query))},
        **{f"mlp.{name}_proj": hidden * inner for name in ("gate", "up", "down")},
    }
    return sum(
        size
        for layer in range(config["num_hidden_layers"])
        for name, size in matrices.items()
        if not any(part in f"model.layers.{layer}.{name}" for part in skipped)
    )
