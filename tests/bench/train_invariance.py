"""One training run in several ways that must not change it: how its documents are batched, over how many processes, and
where its numbers live.

python -m tests.bench.train_invariance FOLDER LOGITS ARM… trains in each of these ways, started by `run_processes`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tasks.artifacts.store import open_store
from tasks.modeling.model_files import load_causal_lm
from tasks.training.batches import Batch, collate
from tasks.training.loader import StepLoader
from tasks.training.losses import LossWeights
from tasks.training.order import StepOrder
from tasks.training.packing import Packing
from tasks.training.rows import RowSource
from tests.bench.distilling import SAID, STUDENT, distill_inputs
from tests.bench.records import Measured, Measurement
from tests.bench.stores import open_reader
from tests.bench.training import joined, make_engine, run_processes

NUM_TOKENS, MAX_TOKENS = 40_000, 256
STEPS, ROWS_PER_STEP, SEED = 8, 16, 0
LEARNING_RATE = 1e-3
WEIGHTS = LossWeights(forward_kl=0.7, ce=0.3)
ALL = 10**9
"""Tokens of a forward pass that takes a whole step."""


@dataclass(frozen=True)
class Arm:
    """One way of training. Without a packing each document has a row of its own, `rows_per_pass` rows a pass."""

    packing: Packing | None = None
    rows_per_pass: int = 1
    zero: int = 1


ALONE = {
    "passes of 256 tokens": Arm(Packing(256)),
    "passes of 1024 tokens": Arm(Packing(1024)),
    "one pass": Arm(Packing(ALL)),
    "one document a pass": Arm(),
    "rows of 1024 tokens": Arm(Packing(ALL, 1024)),
    "one document a row": Arm(rows_per_pass=ROWS_PER_STEP),
}
TOGETHER = {f"ZeRO {zero}": Arm(Packing(1024), zero=zero) for zero in range(4)}
COMPARED = {
    "micro_batch": ("passes of 256 tokens", "passes of 1024 tokens", "one pass"),
    "accumulation": ("one document a pass", "one pass"),
    "packing": ("rows of 1024 tokens", "one document a row"),
    "world_size": ("ZeRO 1", "passes of 1024 tokens"),
    "zero_stage": ("ZeRO 1", "ZeRO 2", "ZeRO 3", "ZeRO 0"),
}
"""The ways of each row; the last one is what the others are compared with."""


@dataclass(frozen=True)
class Trained:
    """What one way came to: loss, forward KL, CE and the gradient's norm of each of S steps, the passes of all."""

    values_S4: np.ndarray
    passes: int
    weights: dict[str, torch.Tensor]


def _invariance() -> Iterator[Measured]:
    with tempfile.TemporaryDirectory() as folder:
        inputs = distill_inputs(Path(folder), NUM_TOKENS, MAX_TOKENS)
        logits = inputs.inputs["logits"].directory
        trained: dict[str, Trained] = {}
        for arms, count in ((ALONE, 1), (TOGETHER, 2)):
            weights = Path(folder, f"weights-{count}")
            weights.mkdir()
            found = run_processes(__name__, [inputs.store.uri, logits, str(weights), *arms], count)
            for name, (values, passes) in found.items():
                trained[name] = Trained(np.array(values), passes, load_file(weights / f"{name}.safetensors"))
    for what, (*names, reference) in COMPARED.items():
        base, others = trained[reference], [trained[name] for name in names]
        changes_S4 = np.max([abs(other.values_S4 / base.values_S4 - 1) for other in others], 0)
        loss, *_, norm = changes_S4.max(0)
        passes = ", ".join(f"{name} ({trained[name].passes} passes)" for name in (*names, reference))
        yield Measured(
            f"train.invariance.{what}",
            float(changes_S4.max()),
            f"{passes}, against the last of these; loss {loss:.1e}, gradient's norm {norm:.1e}, final weights by "
            f"{max(_distance(other.weights, base.weights) for other in others):.1e} of their norm; {STEPS} steps of "
            f"{ROWS_PER_STEP} documents of up to {MAX_TOKENS} tokens, 0.7 forward KL + 0.3 CE from "
            f"{base.values_S4[0, 0]:.3f} to {base.values_S4[-1, 0]:.3f} nat; {SAID}, float32",
            len(others),
        )


def _distance(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """Norm of the difference of all weights over the norm of all weights."""
    difference = sum(float((found[name] - weight).double().square().sum()) for name, weight in expected.items())
    return float(np.sqrt(difference / sum(float(weight.double().square().sum()) for weight in expected.values())))


def _child(store: str, logits: str, weights: str, *names: str) -> dict[str, Any]:
    processes = joined()
    reader = open_reader(open_store(store), logits)
    source = reader.rows("train")
    order = StepOrder(len(source), ROWS_PER_STEP, SEED)
    found = {}
    for name in names:
        arm = (ALONE | TOGETHER)[name]
        engine = make_engine(
            load_causal_lm(STUDENT, dtype=torch.float32),
            reader.schema.vocab_size,
            WEIGHTS,
            processes,
            zero=arm.zero,
            learning_rate=LEARNING_RATE,
            rows_per_step=ROWS_PER_STEP,
            steps=STEPS,
        )
        values, passes = [], 0
        for batches, num_targets in _steps(source, order, arm, processes.rank, processes.world_size):
            result = engine.step(batches, num_targets, LEARNING_RATE)
            values.append([result.loss, result.parts["forward_kl"], result.parts["ce"], result.grad_norm])
            passes += len(batches)
        tensors = {name: parameter.clone() for name, parameter in engine.parameters()}
        if processes.is_main:
            save_file(tensors, Path(weights, f"{name}.safetensors"))
        found[name] = (values, passes)
    return found


def _steps(
    source: RowSource, order: StepOrder, arm: Arm, rank: int, world_size: int
) -> Iterator[tuple[list[Batch], int]]:
    """The batches of this process and the targets of all, step by step."""
    if arm.packing is not None:
        with closing(StepLoader(source, order, STEPS, arm.packing, rank, world_size)) as loader:
            for step in range(STEPS):
                share = loader.load(step)
                yield share.batches, share.num_targets
        return
    assert world_size == 1
    for step in range(STEPS):
        rows = source.many(order.rows(step))
        passes = [rows[start : start + arm.rows_per_pass] for start in range(0, len(rows), arm.rows_per_pass)]
        batches = [collate([[row] for row in part]) for part in passes]
        yield batches, sum(len(batch.positions_N) for batch in batches)


MEASUREMENTS = [
    Measurement("train_invariance", _invariance, tuple(f"train.invariance.{what}" for what in COMPARED)),
]

if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(_child(*sys.argv[1:])))
