"""One training run in several ways that must not change it: how its documents are batched, over how many processes, and
where its numbers live. It is run with several losses, which together have everything that a loss can be made of.

python -m tests.bench.train_invariance WEIGHTS DUMPS ARM… trains in each of these ways, started by `run_processes`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tasks.artifacts.store import open_store
from tasks.distill.stage import LossRecipe
from tasks.distill.worker import training_rows
from tasks.modeling.model_files import load_causal_lm
from tasks.training.batches import Batch, collate
from tasks.training.engine import TrainingEngine
from tasks.training.loader import StepLoader
from tasks.training.losses import PARTS, LossWeights
from tasks.training.order import StepOrder
from tasks.training.packing import Packing
from tasks.training.processes import Processes
from tasks.training.rows import RowSource
from tests.bench.distilling import SAID, STUDENT, distill_inputs
from tests.bench.records import Measured, Measurement
from tests.bench.rows_train import INVARIANCES, MIXES
from tests.bench.stores import open_reader
from tests.bench.supports import SAMPLED
from tests.bench.training import apart, joined, make_engine, run_processes

NUM_TOKENS, MAX_TOKENS = 40_000, 256
STEPS, ROWS_PER_STEP, SEED = 8, 16, 0
LEARNING_RATE = 1e-3
LOSSES = {
    "": LossRecipe(forward_kl=0.7, ce=0.3),
    ".divergences": LossRecipe(
        forward_kl=0.0, reverse_kl=0.5, jsd=0.5, jsd_beta=0.3, ce=0.2, temperature=2.0, entropy_exponent=0.3
    ),
    ".sampled": LossRecipe(forward_kl=0.7, ce=0.3),
}
DUMPS: dict[str, dict[str, Any]] = {"": {}, ".divergences": {"temperatures": [2.0]}, ".sampled": {"support": SAMPLED}}
"""What differs in the recipe of each loss's dump."""
assert LOSSES.keys() == DUMPS.keys() == MIXES.keys()
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
assert COMPARED.keys() == INVARIANCES.keys()


@dataclass(frozen=True)
class Trained:
    """What one way came to: loss, its parts and the gradient's norm of each of S steps, the passes of all."""

    values_SX: np.ndarray
    passes: int
    weights: dict[str, Tensor]


def _invariance() -> Iterator[Measured]:
    trained: dict[str, dict[str, Trained]] = {mix: {} for mix in LOSSES}
    with tempfile.TemporaryDirectory() as folder:
        dumps = {}
        for mix, changes in DUMPS.items():
            inputs = distill_inputs(Path(folder, f"inputs{mix}"), NUM_TOKENS, MAX_TOKENS, **changes)
            dumps[mix] = (inputs.store.uri, inputs.inputs["logits"].directory)
        for arms, count in ((ALONE, 1), (TOGETHER, 2)):
            weights = Path(folder, f"weights-{count}")
            weights.mkdir()
            found = run_processes(__name__, [str(weights), json.dumps(dumps), *arms], count)
            for mix, by_arm in found.items():
                for arm, (values, passes) in by_arm.items():
                    file = weights / f"{arm}{mix}.safetensors"
                    trained[mix][arm] = Trained(np.array(values), passes, load_file(file))
    start = dict(load_causal_lm(STUDENT, dtype=torch.float32).named_parameters())
    for what, ways in COMPARED.items():
        distances = {}
        for mix, by_arm in trained.items():
            *others, base = (by_arm[way] for way in ways)
            distances[mix] = max(apart(other.weights, base.weights, start) for other in others)
            yield _change(what, mix, ways, others, base)
        yield Measured(
            f"train.invariance.{what}.weights",
            max(distances.values()),
            f"{', '.join(ways)}, against the last of these, after {STEPS} steps; "
            + "; ".join(f"{distances[mix]:.1e} with {said}" for mix, said in MIXES.items())
            + f"; {SAID}, float32",
            len(distances) * (len(ways) - 1),
        )


def _change(what: str, mix: str, ways: tuple[str, ...], others: list[Trained], base: Trained) -> Measured:
    changes_SX = np.max([abs(other.values_SX / base.values_SX - 1) for other in others], 0)
    loss, *_, norm = changes_SX.max(0)
    passes = ", ".join(f"{way} ({each.passes} passes)" for way, each in zip(ways, (*others, base), strict=True))
    return Measured(
        f"train.invariance.{what}{mix}",
        float(changes_SX.max()),
        f"{passes}, against the last of these; loss {loss:.1e}, gradient's norm {norm:.1e}; {STEPS} steps of "
        f"{ROWS_PER_STEP} documents of up to {MAX_TOKENS} tokens, {MIXES[mix]}, from {base.values_SX[0, 0]:.3f} to "
        f"{base.values_SX[-1, 0]:.3f} nat; {SAID}, float32",
        len(others),
    )


def _child(weights: str, dumps: str, *arms: str) -> dict[str, Any]:
    processes = joined()
    found: dict[str, dict[str, Any]] = {}
    for mix, (store, logits) in json.loads(dumps).items():
        reader = open_reader(open_store(store), logits)
        source = training_rows(reader, LOSSES[mix])
        for name in arms:
            arm = (ALONE | TOGETHER)[name]
            engine = _engine(LOSSES[mix], reader.schema.vocab_size, processes, arm.zero)
            found.setdefault(mix, {})[name] = _train(engine, LOSSES[mix], source, arm, processes)
            tensors = {name: parameter.clone() for name, parameter in engine.parameters()}
            if processes.is_main:
                save_file(tensors, Path(weights, f"{name}{mix}.safetensors"))
    return found


def _engine(loss: LossRecipe, num_real: int, processes: Processes, zero: int) -> TrainingEngine:
    return make_engine(
        load_causal_lm(STUDENT, dtype=torch.float32),
        num_real,
        LossWeights(**loss.model_dump()),
        processes,
        zero=zero,
        learning_rate=LEARNING_RATE,
        rows_per_step=ROWS_PER_STEP,
        steps=STEPS,
    )


def _train(
    engine: TrainingEngine, loss: LossRecipe, source: RowSource, arm: Arm, processes: Processes
) -> tuple[list[list[float]], int]:
    """The values of each step, and how many passes this process made."""
    parts = [part for part in PARTS if getattr(loss, part)]
    order = StepOrder(len(source), ROWS_PER_STEP, SEED)
    values, passes = [], 0
    for batches, num_targets in _steps(source, order, arm, processes.rank, processes.world_size):
        result = engine.step(batches, num_targets, LEARNING_RATE)
        values.append([result.loss, *(result.parts[part] for part in parts), result.grad_norm])
        passes += len(batches)
    return values, passes


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
    Measurement(
        "train_invariance",
        _invariance,
        tuple(f"train.invariance.{what}{end}" for what in COMPARED for end in ("", ".*")),
    ),
]

if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(_child(*sys.argv[1:])))
