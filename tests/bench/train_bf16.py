"""Training in bfloat16 in one process and in two, over all ZeRO stages: the same passes of the same documents.

Of a small model with random weights, since a processor without bfloat16 instructions takes hours for a large one. What
is compared is the sum of gradients over processes and what each of DeepSpeed's optimiser classes makes of it, which do
not depend on the size.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import load_file

from tests.bench.records import Measured, Measurement
from tests.bench.training import apart
from tests.training.engines import LENGTHS
from tests.training.ranks import PASS_ROWS, Arm, run_arms

STEPS = tuple(range(8))
ZERO = ("0", "1", "2", "3")


def _world_size() -> Iterator[Measured]:
    with tempfile.TemporaryDirectory() as folder:
        arms = {
            count: [
                Arm(zero, "bfloat16", STEPS, (f"{folder}/begin-{count}-{zero}", f"{folder}/end-{count}-{zero}"))
                for zero in ZERO
            ]
            for count in (1, 2)
        }
        one, two = (run_arms(arms[count], count) for count in (1, 2))
        weights = [
            apart(*(load_file(Path(file)) for file in (b.weights[1], a.weights[1], a.weights[0])))
            for a, b in zip(arms[1], arms[2], strict=True)
        ]
    changes = [
        max(abs(b / a - 1) for x, y in zip(alone.values, both.values, strict=True) for a, b in zip(x, y, strict=True))
        for alone, both in zip(one, two, strict=True)
    ]
    said = (
        f"two processes against one, {len(STEPS)} steps of {len(LENGTHS)} documents of up to {max(LENGTHS)} tokens in "
        f"passes of {PASS_ROWS}, from {one[0].values[0][0]:.3f} to {one[0].values[-1][0]:.3f} nat; a llama of two "
        f"layers, width 16 and 64 ids with random weights, bfloat16 with float32 gradients"
    )
    by_stage = "; ".join(f"{change:.1e} with ZeRO {zero}" for zero, change in zip(ZERO, changes, strict=True))
    yield Measured("train.invariance.world_size_bf16", max(changes), f"{by_stage}; {said}", len(ZERO))
    by_stage = "; ".join(f"{change:.1e} with ZeRO {zero}" for zero, change in zip(ZERO, weights, strict=True))
    yield Measured("train.invariance.world_size_bf16.weights", max(weights), f"{by_stage}; {said}", len(ZERO))


MEASUREMENTS = [
    Measurement(
        "train_bf16", _world_size, ("train.invariance.world_size_bf16", "train.invariance.world_size_bf16.weights")
    )
]
