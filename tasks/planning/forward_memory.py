"""Bytes on one device of a model that only runs forward: a teacher that is dumped, a model that is evaluated.

Weights. transformers' tensor-parallel plan cuts the layers' matrices and the embedding among G devices; the one that
takes shards has the whole head besides (tasks/dump_logits/tensor_group.py):

    (bytes of all but the head) / G + s · rows · d          (a tied head is a second copy, unless G = 1)

Activations: tasks/planning/activations.py. Head of a dump: the hidden states of a pass (s · tokens · d), and full
logits of one chunk of positions, 4.5 bytes each with what the search for the largest needs.

An evaluation has logits at every position of a batch: s bytes each, once more where lm-eval takes their logarithm of
the softmax, and for bits per byte those of one window in float32 with their own log-softmax (8 bytes).
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
    model: Architecture, dtype: str, *, tokens: float, row_tokens: float, chunk_tokens: int, tensor_parallel: int
) -> ForwardMemory:
    """Of the device that takes shards.

    Args:
        dtype: in which the teacher computes; what its checkpoint holds in 8 bits stays so.
        tokens: of one forward pass, padding included.
        row_tokens: of its longest row.
        chunk_tokens: positions whose logits exist at one time.
        tensor_parallel: devices that hold one teacher together.
    """
    size = BYTES[dtype]
    head = size * model.end
    cut = model.bytes(dtype) - (0 if model.tied else head)
    return ForwardMemory(
        weights=cut / tensor_parallel + head if tensor_parallel > 1 else model.bytes(dtype),
        activations=forward_activations(
            model, dtype, tokens=tokens, row_tokens=row_tokens, tensor_parallel=tensor_parallel
        ),
        head=size * tokens * model.hidden + LOGIT_BYTES * chunk_tokens * model.rows,
    )


def evaluation_memory(
    model: Architecture, dtype: str, *, batch: int, prompt: float, window: float, windows: int
) -> ForwardMemory:
    """Of one device in its worst moment: reading prompts with lm-eval, or windows of text for their bits.

    Args:
        batch: prompts at one time.
        prompt: tokens of the longest prompt with its answer.
        window: tokens of the longest window of text; 0: there are none.
        windows: of this length at one time.
    """
    size = BYTES[dtype]
    prompts = ForwardMemory(
        weights=model.bytes(dtype),
        activations=forward_activations(model, dtype, tokens=batch * prompt, row_tokens=prompt),
        head=2 * size * batch * prompt * model.rows,
        cache=2 * size * model.num_layers * model.kv_width * batch * prompt,
    )
    texts = ForwardMemory(
        weights=model.bytes(dtype),
        activations=forward_activations(model, dtype, tokens=windows * window, row_tokens=window),
        head=(size * windows + 8) * window * model.rows,
    )
    return max(prompts, texts, key=lambda memory: memory.peak)
