"""A training engine on the bench's models, in processes that are made for one measurement."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tasks.training.engine import TrainingEngine
from tasks.training.head import head_form
from tasks.training.losses import LossWeights
from tasks.training.processes import Processes, join
from tasks.training.settings import OptimizerRecipe, TrainingRecipe, TrainingRuntime
from tests.bench.paths import ROOT


def apart(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> float:
    """How far two trainings ended apart, over how far the expected one went from the start; of all weights together."""
    return _distance(found, expected, start) / _distance(expected, start, start)


def _distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor], names: Iterable[str]) -> float:
    return math.sqrt(sum(float((a[name].double() - b[name].double()).square().sum()) for name in names))


def run_processes(module: str, arguments: Sequence[str], count: int) -> dict[str, Any]:
    """Runs `python -m module …` in so many processes that can meet; what the first prints last, as JSON.

    Raises:
        RuntimeError: one of them failed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for rank in range(count):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", module, *arguments],
                    cwd=ROOT,
                    env={
                        **os.environ,
                        **{name: str(value) for name, value in place.items()},
                        "MASTER_ADDR": "127.0.0.1",
                        "MEDIUS_BENCH_SCRATCH": folder,
                    },
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        said = [process.communicate()[0] for process in processes]
        codes = [process.returncode for process in processes]
    if any(codes):
        raise RuntimeError(f"{module} {' '.join(arguments)} ended with {codes}")
    result: dict[str, Any] = json.loads(said[0].splitlines()[-1])
    return result


def joined() -> Processes:
    """This process among those that `run_processes` started."""
    runtime = TrainingRuntime(device="cpu", launcher="torchrun", num_processes=int(os.environ["WORLD_SIZE"]))
    return join(runtime, Path(os.environ["MEDIUS_BENCH_SCRATCH"]))


def make_engine(
    model: PreTrainedModel,
    num_real: int,
    weights: LossWeights,
    processes: Processes,
    *,
    zero: int,
    learning_rate: float,
    rows_per_step: int,
    steps: int,
) -> TrainingEngine:
    """In float32, with the optimiser's defaults otherwise."""
    assert model.dtype == torch.float32
    return TrainingEngine(
        model,
        form=head_form(model, num_real),
        weights=weights,
        recipe=TrainingRecipe(
            optimizer=OptimizerRecipe(learning_rate=learning_rate),
            rows_per_step=rows_per_step,
            steps=steps,
            precision="float32",
        ),
        runtime=TrainingRuntime(
            device="cpu",
            launcher="torchrun",
            num_processes=processes.world_size,
            deepspeed_config=f"configs/deepspeed/zero{zero}.json",
        ),
        processes=processes,
    )
