"""Bytes on one device of a model that only runs forward: a teacher that is dumped, a model that is evaluated.

Weights. transformers' tensor-parallel plan cuts the layers' matrices among G devices; every one of them has the whole
embedding, and the one that takes shards the whole head (the others a G-th):

    (bytes of the layers) / G + s · rows · d + s · rows · d          (once, if the two are tied)

Activations: tasks/planning/activations.py. Head: the hidden states of a pass (s · tokens · d), and full logits of one
chunk of positions, 4.5 bytes each with what the search for the largest needs.
"""

from __future__ import annotations

from tasks.artifacts.frozen import Frozen
from tasks.planning.activations import forward_activations
from tasks.planning.architecture import BYTES, Architecture

LOGIT_BYTES = 4.5
"""A logit in float32, and its part of the block maxima."""


class ForwardMemory(Frozen):
    """Bytes on one device by what holds them."""

    weights: float
    activations: float
    head: float
    cache: float = 0.0
    """Keys and values of the texts that are being written."""

    @property
    def peak(self) -> float:
        """All of it."""
        return self.weights + self.activations + self.head + self.cache


def dump_memory(
    model: Architecture, dtype: str, *, tokens: float, chunk_tokens: int, tensor_parallel: int
) -> ForwardMemory:
    """Of the device that takes shards.

    Args:
        dtype: in which the teacher computes; what its checkpoint holds in 8 bits stays so.
        tokens: of one forward pass, padding included.
        chunk_tokens: positions whose logits exist at one time.
        tensor_parallel: devices that hold one teacher together.
    """
    size = BYTES[dtype]
    ends = size * model.ends
    return ForwardMemory(
        weights=(model.bytes(dtype) - ends) / tensor_parallel + ends,
        activations=forward_activations(model, dtype, tokens=tokens, tensor_parallel=tensor_parallel),
        head=size * tokens * model.hidden + LOGIT_BYTES * chunk_tokens * model.rows,
    )


def generation_memory(model: Architecture, dtype: str, *, batch: int, tokens: float) -> ForwardMemory:
    """Of one device that answers `batch` prompts at a time, each of `tokens` tokens with its answer."""
    size = BYTES[dtype]
    return ForwardMemory(
        weights=model.bytes(dtype),
        activations=forward_activations(model, dtype, tokens=batch * tokens),
        head=4 * batch * model.rows,
        cache=2 * size * model.num_layers * model.kv_width * batch * tokens,
    )
