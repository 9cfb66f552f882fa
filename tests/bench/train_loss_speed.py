"""CPU time of the fused loss with both gradients, over what it is made of and what it takes the place of.

- fused CE: the same function without a teacher;
- the three products: logits, dX and dW as torch.mm makes them, in the inputs' type, of all positions at once;
- plain CE: hidden states times head, torch's cross-entropy, backward;
- torchtune and TRL: kd_packages.py.

A processor without bfloat16 instructions makes bfloat16 products at about 1 GFLOP/s, beside which no loss costs
anything: there the row in that type is not measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from tasks.planning.peak import emulated_bfloat16
from tasks.training.products import logits_into
from tests.bench.heads import CE_AND_KL, CE_ONLY, HeadInputs
from tests.bench.kd_packages import PACKAGES, run_packaged
from tests.bench.records import Measured, Measurement
from tests.bench.timing import Paired, median_cpu_seconds, paired

NUM_POSITIONS = {"fp32": 882, "bf16": 1764}
"""Two and four chunks: about 10 s a repetition. What one call costs once, memory for dW above all, counts as in a
training's passes of a few thousand tokens."""
PART = 221
"""Positions of half a chunk, whose float32 logits exist at one time in bfloat16."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
REPETITIONS, EXACT_REPETITIONS = 5, 2
CLOSE_REPETITIONS = 15
"""Where the goal is three percent: single pairs were seen from 0.99 to 1.10 on an otherwise idle machine."""
SIZES = "151,936 ids, hidden 896, 64 entries; loss, dX and dW"


def _over_ce() -> Iterator[Measured]:
    inputs = HeadInputs.make(NUM_POSITIONS["fp32"], torch.float32)
    times = paired(_fused(inputs), partial(inputs.fused, inputs.gold, CE_ONLY), CLOSE_REPETITIONS)
    yield _measured("over_ce", "fp32", times, "fused CE without a teacher", NUM_POSITIONS["fp32"])


def _over_products(dtype: str) -> Iterator[Measured]:
    if dtype == "bf16" and (slower := emulated_bfloat16()) is not None:
        raise RuntimeError(f"{slower}: measure this row on a processor with bfloat16 instructions")
    count = NUM_POSITIONS[dtype]
    inputs = HeadInputs.make(count, DTYPES[dtype])
    hidden_ND, weight_VD = inputs.hidden_ND, inputs.weight_VD
    times = paired(_fused(inputs), partial(products, hidden_ND, weight_VD), REPETITIONS)
    other = "the three products"
    if dtype == "bf16":
        # torch rounds a product of bfloat16 factors to bfloat16, which no loss can be made of.
        exact = median_cpu_seconds(partial(_products_exact, hidden_ND, weight_VD), EXACT_REPETITIONS)
        other += f" (over the same with float32 logits {times.seconds_a / exact:.2f})"
    yield _measured("over_products", dtype, times, other, count)


def _over_unfused_ce() -> Iterator[Measured]:
    inputs = HeadInputs.make(NUM_POSITIONS["fp32"], torch.float32)
    times = paired(_fused(inputs), partial(_plain_ce, inputs), REPETITIONS)
    yield _measured("over_unfused_ce", "fp32", times, "plain CE of all logits", NUM_POSITIONS["fp32"])


def _fused(inputs: HeadInputs) -> partial[None]:
    return partial(inputs.fused, inputs.targets, CE_AND_KL)


@torch.no_grad()
def products(hidden_ND: Tensor, weight_VD: Tensor) -> None:
    logits_NV = torch.mm(hidden_ND, weight_VD.T)
    # Their gradient has the same size; which numbers are in it costs nothing.
    _ = torch.mm(logits_NV, weight_VD), torch.mm(logits_NV.T, hidden_ND)


@torch.no_grad()
def _products_exact(hidden_ND: Tensor, weight_VD: Tensor) -> None:
    logits_CV = torch.empty(PART, len(weight_VD))
    for hidden_CD in hidden_ND.split(PART):
        logits_into(logits_CV[: len(hidden_CD)], hidden_CD, weight_VD)
    gradient_NV = hidden_ND.new_zeros(len(hidden_ND), len(weight_VD))
    _ = torch.mm(gradient_NV, weight_VD), torch.mm(gradient_NV.T, hidden_ND)


def _plain_ce(inputs: HeadInputs) -> None:
    inputs.hidden_ND.grad = inputs.weight_VD.grad = None
    logits_NV = inputs.hidden_ND @ inputs.weight_VD.T
    torch.nn.functional.cross_entropy(logits_NV, inputs.gold.gold_N, reduction="sum").backward()


def _measured(what: str, dtype: str, times: Paired, other: str, count: int) -> Measured:
    return Measured(
        f"train.loss.{what}.{dtype}",
        times.ratio,
        f"fused CE + forward KL over {other}: {times.spread}; {count} positions, {SIZES}",
        times.repetitions,
    )


def _over_package(package: str) -> Iterator[Measured]:
    result = run_packaged(package)
    losses = {name: found for name, found in result.items() if isinstance(found, dict)}
    fastest = min(losses, key=lambda name: losses[name]["ratio"])
    others = "".join(f"; {name} {found['ratio']:.2f}" for name, found in losses.items() if name != fastest)
    yield Measured(
        f"train.loss.{package}_over",
        losses[fastest]["ratio"],
        f"{PACKAGES[package]} {fastest}, forward KL from dense teacher logits that cost it nothing, over fused CE + "
        f"forward KL from 64 stored entries: {losses[fastest]['spread']}{others}; float32, {result['positions']} "
        f"positions, {SIZES}",
        result["repetitions"],
    )


MEASUREMENTS = [
    Measurement("train_loss_over_ce", _over_ce, ("train.loss.over_ce.fp32",)),
    *(
        Measurement(
            f"train_loss_over_products {dtype}", partial(_over_products, dtype), (f"train.loss.over_products.{dtype}",)
        )
        for dtype in DTYPES
    ),
    Measurement("train_loss_over_unfused_ce", _over_unfused_ce, ("train.loss.over_unfused_ce.fp32",)),
    *(
        Measurement(f"train_loss_over {package}", partial(_over_package, package), (f"train.loss.{package}_over",))
        for package in PACKAGES
    ),
]
