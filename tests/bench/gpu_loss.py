"""The fused loss on a GPU, at the head of a 14B student: over its matrix products, and over Liger's fused CE."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from tests.bench.cuda import CLOCK, require_cuda, seconds
from tests.bench.heads import CE_AND_KL, HeadInputs, V
from tests.bench.records import Measured, Measurement
from tests.bench.timing import paired
from tests.bench.train_loss_speed import products

WIDTH = 5120
"""Of Qwen2.5-14B."""
NUM_POSITIONS = 8192
REPETITIONS = 15


def _over_products() -> Iterator[Measured]:
    inputs = HeadInputs.make(NUM_POSITIONS, torch.bfloat16, require_cuda(), WIDTH)
    ours = partial(inputs.fused, inputs.targets, CE_AND_KL)
    times = paired(ours, partial(products, inputs.hidden_ND, inputs.weight_VD), REPETITIONS, 3, seconds, CLOCK)
    yield Measured("gpu.loss_over_products.bf16", times.ratio, f"{times.spread}; {_said()}", REPETITIONS)


def _over_liger() -> Iterator[Measured]:
    inputs = HeadInputs.make(NUM_POSITIONS, torch.bfloat16, require_cuda(), WIDTH)
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    liger = LigerFusedLinearCrossEntropyLoss(reduction="sum")

    def theirs() -> None:
        inputs.hidden_ND.grad = inputs.weight_VD.grad = None
        liger(inputs.weight_VD, inputs.hidden_ND, inputs.gold.gold_N).backward()

    times = paired(partial(inputs.fused, inputs.targets, CE_AND_KL), theirs, REPETITIONS, 3, seconds, CLOCK)
    yield Measured("gpu.loss_over_liger_ce.bf16", times.ratio, f"{times.spread}; {_said()}", REPETITIONS)


def _said() -> str:
    return f"{torch.cuda.get_device_name()}, {NUM_POSITIONS} positions, {V:,} ids, hidden {WIDTH}, 64 entries"


MEASUREMENTS = [
    Measurement("gpu_loss_over_products", _over_products, ("gpu.loss_over_products.*",)),
    Measurement("gpu_loss_over_liger", _over_liger, ("gpu.loss_over_liger_ce.*",)),
]
