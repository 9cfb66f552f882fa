"""FLOPs of running and training a causal language model, from its config.json alone. Pure numbers, no torch.

"Model FLOPs" are what the mathematics needs: matrix products with weights, attention scores and the values they weigh;
a multiplication and an addition count two. What a kernel computes again to save memory is not counted, so that the
utilisation made of them falls when something is recomputed. Norms, activations and rotary embeddings are left out.
A sliding window counts as if it were the whole document.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.frozen import Frozen

GATED_TYPES = frozenset(
    {
        "cohere",
        "cohere2",
        "gemma",
        "gemma2",
        "gemma3_text",
        "granite",
        "llama",
        "ministral",
        "mistral",
        "olmo2",
        "olmo3",
        "phi3",
        "qwen2",
        "qwen3",
        "smollm3",
    }
)
"""Values of `model_type` whose layers are attention with grouped keys and a gated MLP of three matrices, no more."""


class ModelShape(Frozen):
    """What of a model's config decides its FLOPs."""

    layer_weights: int
    """Entries of the matrices of all layers: each is multiplied once a token. Without embedding and head."""
    head_weights: int
    """Entries of the output matrix, padding rows included."""
    attention_width: int
    """Layers times heads times head dimension."""


def model_shape(config: Mapping[str, Any]) -> ModelShape:
    """Reads a transformers config.json.

    Raises:
        BadInputError: an architecture whose FLOPs this file does not know, or a size is missing.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in GATED_TYPES:
        raise BadInputError(
            f"the FLOPs of model_type {kind!r} are not known; known are {', '.join(sorted(GATED_TYPES))} "
            f"(tasks/planning/flops.py)"
        )
    hidden, inner, vocab = (_size(config, name) for name in ("hidden_size", "intermediate_size", "vocab_size"))
    layers, heads = (_size(config, name) for name in ("num_hidden_layers", "num_attention_heads"))
    head_dim = _size(config, "head_dim", hidden // heads)
    kv_heads = _size(config, "num_key_value_heads", heads)
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    return ModelShape(
        layer_weights=layers * (attention + 3 * hidden * inner),
        head_weights=hidden * vocab,
        attention_width=layers * heads * head_dim,
    )


def _size(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """`default` stands for what is missing or null."""
    value, kind = config.get(name) or default, config["model_type"]
    if value is None:
        raise BadInputError(f"the config of a {kind} model has no {name!r}; its FLOPs cannot be counted")
    if not isinstance(value, int) or value < 1:
        raise BadInputError(
            f"the config of a {kind} model has {name} {value!r}, no positive whole number; its FLOPs cannot be counted"
        )
    return value


def causal_pairs(lengths: list[int]) -> int:
    """Pairs of a token and one that it attends to, itself included, in documents of these lengths."""
    return sum(length * (length + 1) // 2 for length in lengths)


def masked_pairs(num_tokens: float, row_tokens: float) -> float:
    """Pairs that are computed of rows with a mask of their own, packed or padded: each token's with its whole row.

    torch's flash kernels leave out what lies above the diagonal, and take no mask; the others compute a masked pair and
    throw it away. So these are FLOPs that are executed, never "model FLOPs".

    Args:
        num_tokens: padding included.
        row_tokens: length of a row; where rows differ, of the one that a token is in.
    """
    return num_tokens * row_tokens


def forward_flops(shape: ModelShape, *, num_tokens: float, num_logits: float, num_pairs: float) -> float:
    """Model FLOPs of a forward pass: 2 a weight of the layers and token, 4 a pair and unit of attention, 2 a weight of
    the head and position with logits.

    Args:
        num_tokens: tokens that pass the layers.
        num_logits: positions at which logits are computed.
        num_pairs: attended pairs of tokens (`causal_pairs`), or computed ones (`masked_pairs`).
    """
    layers = 2 * shape.layer_weights * num_tokens + 4 * shape.attention_width * num_pairs
    return layers + 2 * shape.head_weights * num_logits


def training_flops(
    shape: ModelShape,
    *,
    num_tokens: float,
    num_targets: float,
    num_pairs: float,
    frozen_layers: bool = False,
    frozen_head: bool = False,
) -> float:
    """Model FLOPs of forward and backward over some documents.

    Args:
        num_tokens: tokens that pass the layers, padding left out.
        num_targets: positions at which the fused head computes logits; it runs at no other.
        num_pairs: attended pairs of tokens (`causal_pairs`), or computed ones (`masked_pairs`).
        frozen_layers: only embedding and head learn: the layers pass gradients on, but get none.
        frozen_head: only the layers learn, and the head passes gradients on.
    """
    products = 2 * shape.layer_weights * num_tokens
    scores = 4 * shape.attention_width * num_pairs
    layers = (2 if frozen_layers else 3) * products + 3 * scores
    return layers + (2 if frozen_head else 3) * 2 * shape.head_weights * num_targets
