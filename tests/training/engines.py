"""Engines for tests: a small model, and steps whose documents are a function of the step's number."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from tasks.logits.rows import Row
from tasks.training.batches import Batch, collate
from tasks.training.deepspeed_config import CHECKOUT
from tasks.training.engine import DTYPES, StepResult, TrainingEngine
from tasks.training.losses import HeadForm, LossWeights
from tasks.training.processes import join
from tasks.training.settings import Learning, OptimizerRecipe, TrainingRecipe, TrainingRuntime
from tests.training.parts import VOCAB, make_model, make_row

OPTIMIZER = OptimizerRecipe(learning_rate=1e-2, weight_decay=0.1, max_grad_norm=0.5)
LENGTHS = (6, 9, 4, 12, 7, 5, 8, 11)


def make_engine(
    scratch: Path,
    *,
    zero: str = "1",
    precision: str = "float32",
    checkpointing: bool = False,
    model: PreTrainedModel | None = None,
    zero_settings: Mapping[str, object] | None = None,
    device: str = "cpu",
    num_processes: int = 1,
    frozen_embedding: bool = False,
) -> TrainingEngine:
    """`zero_settings` go into the JSON's zero_optimization. Each of `num_processes` calls it, with one scratch."""
    path = CHECKOUT / f"configs/deepspeed/zero{zero}.json"
    if zero_settings:
        settings = json.loads(path.read_text())["zero_optimization"] | dict(zero_settings)
        path = scratch / "deepspeed.json"
        path.write_text(json.dumps({"zero_optimization": settings}))
    recipe = TrainingRecipe(
        optimizer=OPTIMIZER, steps=3, rows_per_step=8, precision=precision, frozen_embedding=frozen_embedding
    )
    runtime = TrainingRuntime(
        deepspeed_config=str(path),
        gradient_checkpointing=checkpointing,
        device=device,
        num_processes=num_processes,
        launcher="python" if num_processes == 1 else "torchrun",
    )
    model = model or make_model()
    torch.nn.Module.to(model, DTYPES[precision])
    return TrainingEngine(
        model,
        form=HeadForm(VOCAB),
        weights=LossWeights(ce=1),
        recipe=recipe,
        runtime=runtime,
        processes=join(runtime, scratch),
    )


def step_rows(step: int) -> list[Row]:
    return [make_row(length, 100 * step + place) for place, length in enumerate(LENGTHS)]


def alone(rows: Sequence[Row]) -> Batch:
    return collate([[row] for row in rows])


def num_targets(rows: Sequence[Row]) -> int:
    return sum(int(row.loss_mask[1:].sum()) for row in rows)


def take(engine: TrainingEngine, step: int, micro: int = 8, learning: Learning = "all") -> StepResult:
    """A step of 8 documents, `micro` at a time; each process takes its share of an even number of passes."""
    rows = step_rows(step)
    passes = [alone(rows[start : start + micro]) for start in range(0, 8, micro)]
    batches = passes[engine.engine.global_rank :: engine.engine.dp_world_size]
    return engine.step(batches, num_targets(rows), OPTIMIZER.learning_rate, learning=learning)


def weights_of(engine: TrainingEngine) -> dict[str, torch.Tensor]:
    return {name: parameter.float().clone() for name, parameter in engine.parameters()}
