"""Bytes on one device of a training with DeepSpeed, by ZeRO stage, in the worst moment of a step.

With P parameters, N devices, s bytes an entry of the recipe's precision:

    stage   weights   gradients kept over a step   AdamW: two moments and, but for stage 0 in float32, a master copy
    0       s P       4 P                          12 P (float32: 8 P)
    1       s P       4 P                          12 P / N
    2       s P       4 P / N                      12 P / N
    3       s P / N   4 P / N                      12 P / N

An embedding and head that are frozen count in the column of the weights alone. Gradients are accumulated in float32 at
every stage. Offloading moves gradients and the last column, and at stage 3 the
weights, to the node's memory. On top stands the larger of two moments:

    backward   the activations; the fused head's float32 logits of one chunk, its weight's gradient in float32 and in
               the weights' type, the embedding's; the hidden states' gradient; stages 2 and 3 a bucket of gradients and
               its float32 copy for the sum over processes; stage 3 the weights that are gathered at one time
               (stage3_max_live_parameters, at least head and one layer)
    step       AdamW's own temporaries (two of its largest group's length: the layers' matrices, or embedding and head)
               and, in stages 1 and 2, one more copy of the gradients that this device steps with
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.artifacts.frozen import Frozen
from tasks.planning.activations import training_activations
from tasks.planning.architecture import BYTES, Architecture

LOGIT_CHUNK_BYTES = 256 * 2**20
"""CHUNK_BYTES of tasks/training/losses.py, which knows torch."""
_BUCKET, _LIVE = 500_000_000, 1_000_000_000
"""DeepSpeed's defaults of reduce_bucket_size and stage3_max_live_parameters, in entries."""


class Sharding(Frozen):
    """How a training is spread over devices."""

    stage: int
    devices: int
    offload_optimizer: bool = False
    offload_weights: bool = False
    bucket: int = _BUCKET
    live: int = _LIVE

    @classmethod
    def of(cls, deepspeed: Mapping[str, Any], devices: int) -> Sharding:
        """Reads the JSON of a training (configs/deepspeed/)."""
        zero = deepspeed["zero_optimization"]
        return cls(
            stage=zero["stage"],
            devices=devices,
            offload_optimizer=(zero.get("offload_optimizer") or {}).get("device", "none") != "none",
            offload_weights=(zero.get("offload_param") or {}).get("device", "none") != "none",
            bucket=int(zero.get("reduce_bucket_size", _BUCKET)),
            live=int(zero.get("stage3_max_live_parameters", _LIVE)),
        )

    def part(self, stage: int) -> int:
        """Among how many devices that is cut which is cut from `stage` on."""
        return self.devices if self.stage >= stage else 1


class TrainingMemory(Frozen):
    """Bytes on one device by what holds them, and in the node's memory by one process."""

    weights: float
    gradients: float
    optimiser: float
    activations: float
    head: float
    buckets: float
    """Of gradients on their way, and weights that are gathered."""
    step: float
    """Temporaries of the optimiser, when activations, head and buckets are gone."""
    host: float

    @property
    def peak(self) -> float:
        """Bytes on the device in the worst moment."""
        backward = self.activations + self.head + self.buckets
        return self.weights + self.gradients + self.optimiser + max(backward, self.step)


def learning_parameters(model: Architecture, *, frozen_ends: bool) -> float:
    """How many have gradients and states of the optimiser."""
    return model.parameters - (model.ends if frozen_ends else 0)


def training_memory(
    model: Architecture,
    sharding: Sharding,
    dtype: str,
    *,
    tokens: float,
    packed_tokens: float,
    checkpointing: bool,
    frozen_ends: bool = False,
) -> TrainingMemory:
    """Of one device.

    Args:
        model: with the rows that it is trained with.
        dtype: the recipe's precision.
        tokens: of the largest forward pass, padding included.
        packed_tokens: of the longest row of several documents; 0: each row is one.
        checkpointing: whether layers are computed again in the backward pass.
        frozen_ends: whether embedding and head require no gradient.
    """
    size, count, stage = BYTES[dtype], model.parameters, sharding.stage
    learning = learning_parameters(model, frozen_ends=frozen_ends)
    # In float32 without ZeRO AdamW works on the weights themselves.
    states = 8 if stage == 0 and size == 4 else 12
    optimiser = states * learning / sharding.part(1)
    weights = size * count / sharding.part(3)
    gradients = 4 * learning / sharding.part(2)
    largest_group = max(model.shape.layer_weights, 0 if frozen_ends else model.ends)
    step = 2 * 4 * largest_group / sharding.part(1) + (4 * learning / sharding.devices if stage in (1, 2) else 0)
    head = min(LOGIT_CHUNK_BYTES, 4 * tokens * model.rows) + 2 * size * tokens * model.hidden
    if not frozen_ends:
        # A tied head's gradient is the embedding's; float32 needs no copy in another type.
        head += 4 * model.end + (size * model.ends if size < 4 else 4 * (model.ends - model.end))
    buckets = 0.0
    if stage >= 2:
        buckets += min(sharding.bucket, learning) * (size + (4 if size < 4 else 0))
    if stage == 3:
        buckets += size * min(count, max(sharding.live, model.end + model.layer))
    host = float(size * count)
    if sharding.offload_optimizer:
        host, optimiser, gradients, step = host + optimiser + 4 * learning / sharding.devices, 0.0, 0.0, 0.0
    if sharding.offload_weights:
        host, weights = host + weights, 0.0
    return TrainingMemory(
        weights=weights,
        gradients=gradients,
        optimiser=optimiser,
        activations=training_activations(
            model, dtype, tokens=tokens, packed_tokens=packed_tokens, checkpointing=checkpointing
        ),
        head=head,
        buckets=buckets,
        step=step,
        host=host,
    )


def checkpoint_bytes(model: Architecture, sharding: Sharding, dtype: str, *, frozen_ends: bool = False) -> float:
    """Of one checkpoint: the weights in the recipe's precision; AdamW's moments and float32 copy of what learns."""
    states = 8 if sharding.stage == 0 and BYTES[dtype] == 4 else 12
    return BYTES[dtype] * model.parameters + states * learning_parameters(model, frozen_ends=frozen_ends)


def traffic_per_pass(model: Architecture, sharding: Sharding, dtype: str, *, frozen_ends: bool = False) -> float:
    """Bytes that one device receives from others for one forward and backward pass.

    A ring moves (N − 1) / N of what it gathers or scatters to each device. Stage 3 gathers the weights twice and
    scatters float32 gradients; stage 2 scatters gradients in every pass. Stages 0 and 1 sum once a step
    (`traffic_per_step`).
    """
    part = (sharding.devices - 1) / sharding.devices
    gradients = 4 * learning_parameters(model, frozen_ends=frozen_ends)
    if sharding.stage == 3:
        return (2 * BYTES[dtype] * model.parameters + gradients) * part
    return gradients * part if sharding.stage == 2 else 0.0


def traffic_per_step(model: Architecture, sharding: Sharding, dtype: str, *, frozen_ends: bool = False) -> float:
    """Bytes that one device receives for an optimiser step, besides those of its passes: stages 0 and 1 sum float32
    gradients (twice what is scattered alone), stages 1 and 2 gather the new weights."""
    part = (sharding.devices - 1) / sharding.devices
    learning = learning_parameters(model, frozen_ends=frozen_ends)
    gradients = 8 * learning if sharding.stage < 2 else 0
    weights = BYTES[dtype] * learning if sharding.stage in (1, 2) else 0
    return (gradients + weights) * part
