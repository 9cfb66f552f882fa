"""Peak memory of the fused loss with both gradients, and that it does not grow with the number of positions, each of
which runs in a process of its own:

python -m tests.bench.train_loss_memory POSITIONS
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import torch

from tasks.training.losses import CHUNK_BYTES
from tests.bench.heads import CE_AND_KL, HeadInputs, V
from tests.bench.memory import peak_bytes, reset_peak, resident_bytes
from tests.bench.paths import ROOT
from tests.bench.records import Measured, Measurement

THOUSANDS = (4, 8, 16)


def _peaks() -> Iterator[Measured]:
    found: dict[int, float] = {}
    for thousands in THOUSANDS:
        row = _peak(thousands)
        found[thousands] = row.value
        yield row
    said = ", ".join(f"{value:.0f} MB at {thousands}k" for thousands, value in found.items())
    yield Measured(
        "train.loss.peak_spread",
        max(found.values()) - min(found.values()),
        f"float32, CE + forward KL; above inputs, weights, gradients and {CHUNK_BYTES / 1e6:.0f} MB: {said}; chunks of "
        f"equal length are 410 to 432 positions long, which alone is 13 MB; all logits would grow by "
        f"{4096 * (max(THOUSANDS) - min(THOUSANDS)) * V / 1e6:.0f} MB",
        len(found),
    )


def _peak(thousands: int) -> Measured:
    command = [sys.executable, "-m", "tests.bench.train_loss_memory", str(1024 * thousands)]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    above = result["peak"] - result["before"] - result["gradients"]
    return Measured(
        f"train.loss.peak_above.{thousands}k",
        (above - CHUNK_BYTES) / 1e6,
        f"float32, CE + forward KL; peak {result['peak'] / 1e6:.0f} MB, before {result['before'] / 1e6:.0f} MB with "
        f"inputs, weights and targets, dX and dW {result['gradients'] / 1e6:.0f} MB, one chunk of logits "
        f"{CHUNK_BYTES / 1e6:.0f} MB; {1024 * thousands} positions, 151,936 ids, hidden 896, 64 entries; all logits "
        f"would be {result['logits'] / 1e6:.0f} MB",
    )


def _child(num_positions: int) -> dict[str, int]:
    # What libraries keep for themselves from their first call on is no part of the loss.
    small = HeadInputs.make(64, torch.float32)
    small.fused(small.targets, CE_AND_KL)
    del small
    inputs = HeadInputs.make(num_positions, torch.float32)
    before = resident_bytes()
    reset_peak()
    inputs.fused(inputs.targets, CE_AND_KL)
    gradients = [inputs.hidden_ND.grad, inputs.weight_VD.grad]
    return {
        "peak": peak_bytes(),
        "before": before,
        "gradients": sum(gradient.nbytes for gradient in gradients if gradient is not None),
        "logits": 4 * num_positions * len(inputs.weight_VD),
    }


MEASUREMENTS = [Measurement("train_loss_memory", _peaks, ("train.loss.peak_above.*", "train.loss.peak_spread"))]

if __name__ == "__main__":
    print(json.dumps(_child(int(sys.argv[1]))))
