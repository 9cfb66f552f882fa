"""Bytes that a forward pass holds: what training keeps for the backward pass, and what a pass alone needs at one time.

Per token of one layer, with d hidden, m inner width, q query width, c key-value width, and s bytes an entry, autograd
keeps what its formulas read again:

    two norms                the input in float32, and the normalised one                   2 (4 d + s d)
    into q, k, v and into gate, up: the norms' outputs                                      2 s d
    attention kernel         queries, keys, values and its result                           s (2 q + 2 c)
      of packed rows         keys and values as wide as queries, and the mask, row tokens   s (4 q + L)
                             L wide, which torch turns into numbers once a layer
    into o                   the result, which is the kernel's own                          0
    gated MLP                gate, its activation, up, their product                        4 s m

Where each row is one document, keys and values are held once, not once a query head: torch's kernel groups them itself.
Under a mask, which documents that share a row need, transformers repeats them (`use_gqa_in_sdpa`); the mask's own bools
are there once for all layers. With gradient checkpointing a layer keeps its input (s d), and one layer at a time all of
the above. Behind the layers stands one more norm, whose output the head reads.

A forward pass without gradients holds about two residual streams (s d each), queries, keys, values and result, and the
larger of the MLP's two widest tensors (2 s m) and what a mask adds: keys and values once more, as wide as queries
(2 s q), and the mask as bools and as numbers ((1 + s) L).
"""

from __future__ import annotations

from tasks.planning.architecture import BYTES, Architecture


def kept_per_token(model: Architecture, dtype: str, packed_tokens: float) -> float:
    """Bytes that training keeps of one layer and token; `packed_tokens`: as in `training_activations`."""
    size = BYTES[dtype]
    norms = 2 * (4 + size) * model.hidden
    linear = 2 * size * model.hidden
    keys_and_values = 2 * model.query_width + packed_tokens if packed_tokens else 2.0 * model.kv_width
    attention = size * (2 * model.query_width + keys_and_values)
    return norms + linear + attention + 4 * size * model.inner


def training_activations(
    model: Architecture, dtype: str, *, tokens: float, packed_tokens: float, checkpointing: bool
) -> float:
    """Bytes that training holds when the backward pass begins.

    Args:
        tokens: of one forward pass on one device, padding included.
        packed_tokens: of the longest row of several documents; 0: each row is one, so that there is no mask.
        checkpointing: layers are computed again in the backward pass.
    """
    layer = kept_per_token(model, dtype, packed_tokens)
    stream = BYTES[dtype] * model.hidden
    layers = model.num_layers * stream + layer if checkpointing else model.num_layers * layer
    last_norm = (4 + BYTES[dtype]) * model.hidden + stream
    return tokens * (layers + last_norm + packed_tokens)


def forward_activations(
    model: Architecture, dtype: str, *, tokens: float, row_tokens: float, tensor_parallel: int = 1
) -> float:
    """Bytes that a pass without gradients holds at one time on one of the devices that share its layers.

    Args:
        tokens: of the pass, padding included.
        row_tokens: of its longest row; rows of unequal length come with a mask.
        tensor_parallel: devices that share the layers.
    """
    size = BYTES[dtype]
    attention = size * (2 * model.query_width + 2 * model.kv_width) / tensor_parallel
    masked = size * 2 * model.query_width / tensor_parallel + (1 + size) * row_tokens
    widest = max(size * 2 * model.inner / tensor_parallel, masked)
    # The norm computes in float32: its input and output at that width.
    return tokens * (2 * size * model.hidden + 8 * model.hidden + attention + widest)
