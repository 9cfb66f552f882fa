"""Bytes that a forward pass holds: what training keeps for the backward pass, and what a pass alone needs at one time.

Per token of one layer, with d hidden, m inner width, q query width, c key-value width, and s bytes an entry, autograd
keeps what its formulas read again:

    two norms                the input in float32, and the normalised one                   2 (4 d + s d)
    into q, k, v and into gate, up: the norms' outputs                                      2 s d
    attention kernel         queries, keys, values and its result                           s (2 q + 2 c)
    into o                   the result, which is the kernel's own                          0
    gated MLP                gate, its activation, up, their product                        4 s m

Keys and values are held once, not once a query head: torch's kernel groups them itself. A mask of documents that
share a row adds one bool a pair of tokens, once for all layers. With gradient checkpointing a layer keeps its input
(s d), and one layer at a time all of the above. Behind the layers stands one more norm, whose output the head reads.

A forward pass without gradients holds about two residual streams (s d each), the MLP's two widest tensors (2 s m) and
queries, keys, values.
"""

from __future__ import annotations

from tasks.planning.architecture import BYTES, Architecture


def kept_per_token(model: Architecture, dtype: str) -> float:
    """Bytes that training keeps of one layer and token."""
    size = BYTES[dtype]
    norms = 2 * (4 + size) * model.hidden
    linear = 2 * size * model.hidden
    attention = size * (2 * model.query_width + 2 * model.kv_width)
    return norms + linear + attention + 4 * size * model.inner


def training_activations(
    model: Architecture, dtype: str, *, tokens: float, row_tokens: float, checkpointing: bool
) -> float:
    """Bytes that training holds when the backward pass begins.

    Args:
        tokens: of one forward pass on one device, padding included.
        row_tokens: the longest packed row.
        checkpointing: layers are computed again in the backward pass.
    """
    layer = kept_per_token(model, dtype)
    stream = BYTES[dtype] * model.hidden
    layers = model.num_layers * stream + layer if checkpointing else model.num_layers * layer
    last_norm = (4 + BYTES[dtype]) * model.hidden + stream
    return tokens * (layers + last_norm + row_tokens)


def forward_activations(model: Architecture, dtype: str, *, tokens: float, tensor_parallel: int = 1) -> float:
    """Bytes that a pass without gradients holds at one time on one of the devices that share its layers."""
    size = BYTES[dtype]
    cut = (2 * model.inner + 2 * model.query_width + 2 * model.kv_width) / tensor_parallel
    # The norm computes in float32: its input and output at that width.
    return tokens * (2 * size * model.hidden + 8 * model.hidden + size * cut)
