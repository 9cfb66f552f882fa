"""Peak memory of a training process against tasks/planning/training_memory.py, each stage in a process of its own:

python -m tests.bench.plan_memory WAY, one of WAYS in rows_plan.py
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from tasks.logits.rows import Row, make_row
from tasks.planning.architecture import architecture
from tasks.planning.training_memory import Sharding, TrainingMemory, training_memory
from tasks.training.batches import collate
from tasks.training.deepspeed_config import deepspeed_config
from tasks.training.engine import DTYPES, TrainingEngine
from tasks.training.head import head_form
from tasks.training.losses import LossWeights
from tasks.training.processes import Processes
from tasks.training.settings import OptimizerRecipe, TrainingRecipe, TrainingRuntime
from tests.bench.memory import peak_bytes, reset_peak, resident_bytes
from tests.bench.records import Measured, Measurement
from tests.bench.rows_plan import WAYS, Way
from tests.bench.training import joined, run_processes

PASSES, VOCAB = 2, 8192
MODEL: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
BUCKET = 1_000_000
"""Entries. DeepSpeed's 5e8 are set aside, but on a CPU only what is used of them is memory."""


def _peak(name: str) -> Iterator[Measured]:
    way = WAYS[name]
    # With its default the allocator keeps what was freed, and resident memory tells of more than was held at one time.
    with mock.patch.dict(os.environ, {"MALLOC_MMAP_THRESHOLD_": "131072"}):
        found = run_processes(__name__, [name], way.processes)
    forecast = TrainingMemory.model_validate(found["forecast"])
    ratio = forecast.peak / found["measured"]
    yield Measured(
        f"plan.memory.{name}",
        abs(ratio - 1),
        f"forecast {forecast.peak / 1e6:.0f} MB ({_parts(forecast)}), measured {found['measured'] / 1e6:.0f} MB above "
        f"the process with its libraries; a Qwen2 of {found['parameters'] / 1e6:.1f} M parameters, ZeRO-{way.stage}, "
        f"{way.precision}, {'with' if way.checkpointing else 'without'} gradient checkpointing, "
        f"{'embedding and head frozen, ' if way.frozen_ends else ''}{way.rows} rows of "
        f"{way.row_tokens} tokens in {way.documents} documents a pass, {PASSES} passes a step, {way.processes} "
        f"processes of which the first is measured, bucket {BUCKET:,} entries",
    )


def _parts(forecast: TrainingMemory) -> str:
    return ", ".join(f"{name} {value / 1e6:.0f}" for name, value in forecast.model_dump().items() if name != "host")


def _model(way: Way, **changes: int) -> PreTrainedModel:
    values: dict[str, Any] = {**MODEL, "vocab_size": VOCAB, "max_position_embeddings": way.row_tokens, **changes}
    model: torch.nn.Module = Qwen2ForCausalLM(Qwen2Config(**values))
    model.to(DTYPES[way.precision])
    assert isinstance(model, PreTrainedModel)
    return model


def _row(length: int, seed: int, vocab: int) -> Row:
    ids = np.random.default_rng(seed).integers(0, vocab, length).astype(np.int32)
    mask = np.ones(length, np.uint8)
    mask[0] = 0
    return make_row(ids, mask, "", "text", "bench", f"{seed:064x}")


def _train(
    model: PreTrainedModel, recipe: TrainingRecipe, runtime: TrainingRuntime, processes: Processes, way: Way
) -> None:
    vocab = model.config.vocab_size
    engine = TrainingEngine(
        model,
        form=head_form(model, vocab),
        weights=LossWeights(ce=1.0),
        recipe=recipe,
        runtime=runtime,
        processes=processes,
    )
    del model
    # Two passes: in the second one the gradients of the first are there already.
    length = way.row_tokens // way.documents
    rows = [
        [_row(length, place * way.documents + document, vocab) for document in range(way.documents)]
        for place in range(PASSES * way.rows)
    ]
    passes = [collate(rows[index::PASSES]) for index in range(PASSES)]
    engine.step(passes, processes.world_size * len(rows) * way.documents * (length - 1), 1e-4)


def _child(way: Way) -> dict[str, Any]:
    processes = joined()
    precision: Any = way.precision
    recipe = TrainingRecipe(
        optimizer=OptimizerRecipe(learning_rate=1e-4),
        rows_per_step=processes.world_size * PASSES * way.rows,
        steps=1,
        precision=precision,
        frozen_embedding=way.frozen_ends,
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "zero.json")
        zero = {"stage": way.stage, "overlap_comm": False, "reduce_bucket_size": BUCKET}
        if way.stage >= 2:
            zero["contiguous_gradients"] = True
        if way.stage == 3:
            zero["stage3_param_persistence_threshold"] = 0
        file.write_text(json.dumps({"zero_optimization": zero}))
        runtime = TrainingRuntime(
            device="cpu", launcher="torchrun", deepspeed_config=str(file), gradient_checkpointing=way.checkpointing
        )
        # What libraries keep for themselves from their first step on is no part of the training.
        _train(_model(way, hidden_size=64, num_hidden_layers=1, vocab_size=64), recipe, runtime, processes, way)
        gc.collect()
        before = resident_bytes()
        reset_peak()
        _train(_model(way), recipe, runtime, processes, way)
        peak = peak_bytes()
        config = deepspeed_config(recipe, runtime, processes.world_size)
    model = architecture({**MODEL, "model_type": "qwen2", "vocab_size": VOCAB})
    forecast = training_memory(
        model,
        Sharding.of(config, processes.world_size),
        precision,
        tokens=way.rows * way.row_tokens,
        packed_tokens=way.row_tokens if way.documents > 1 else 0,
        checkpointing=way.checkpointing,
        frozen_ends=way.frozen_ends,
    )
    return {"measured": peak - before, "forecast": forecast.model_dump(), "parameters": model.parameters}


MEASUREMENTS = [Measurement(f"plan_memory {name}", partial(_peak, name), (f"plan.memory.{name}",)) for name in WAYS]

if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(_child(WAYS[sys.argv[1]])))
