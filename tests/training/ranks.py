"""Engines in one process or in several, each of which takes its share of the same steps.

python -m tests.training.ranks ARM…, JSON of `Arm`, started by `run_processes`; prints what each arm came to.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.bench.training import joined, run_processes
from tests.training.engines import make_engine, take, weights_of
from tests.training.parts import ROWS

PASS_ROWS = 2
"""Documents of a forward pass: four passes a step."""


@dataclass(frozen=True)
class Arm:
    """One training. `resumed`: a converted checkpoint that it goes on from. `weights`: where it leaves those that it
    begins with, and those that it ends with."""

    zero: str
    precision: str
    steps: tuple[int, ...]
    weights: tuple[str, str]
    resumed: str | None = None


@dataclass(frozen=True)
class Came:
    """To what an arm came: (loss, gradient's norm) of each step, and how often each group of parameters had learnt when
    it began."""

    values: list[list[float]]
    steps: dict[str, float]


def small_model(seed: int = 0) -> LlamaForCausalLM:
    """Without biases: a key's has a gradient of rounding alone, of which Adam makes full steps that bfloat16 shows."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=ROWS, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=32, initializer_range=0.2, tie_word_embeddings=True,
        )
    )  # fmt: skip


def run_arms(arms: Sequence[Arm], num_processes: int) -> list[Came]:
    """Trains every arm in so many processes of their own."""
    found = run_processes("tests.training.ranks", [json.dumps(asdict(arm)) for arm in arms], num_processes)
    return [Came(**came) for came in found["arms"]]


def _train(arm: Arm, scratch: Path, num_processes: int) -> Came:
    model = small_model(seed=0 if arm.resumed is None else 1)
    engine = make_engine(scratch, zero=arm.zero, precision=arm.precision, model=model, num_processes=num_processes)
    if arm.resumed is not None:
        engine.load_universal(Path(arm.resumed), arm.steps[0])
    optimizer = engine.engine.basic_optimizer
    steps = {group["role"]: float(optimizer.state[master]["step"]) for group, master in engine.masters()}
    weights = [weights_of(engine)]
    values = [[(result := take(engine, step, PASS_ROWS)).loss, result.grad_norm] for step in arm.steps]
    weights.append(weights_of(engine))
    if engine.engine.global_rank == 0:
        for file, tensors in zip(arm.weights, weights, strict=True):
            save_file(tensors, file)
    return Came(values, steps)


def main(arms: Sequence[str]) -> dict[str, Any]:
    processes = joined()
    scratch = Path(os.environ["MEDIUS_BENCH_SCRATCH"])
    parsed = [json.loads(arm) for arm in arms]
    return {"arms": [asdict(_train(Arm(**fields), scratch, processes.world_size)) for fields in parsed]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(main(sys.argv[1:])))
