"""Peak memory of a training process against tasks/planning/training_memory.py, each stage in a process of its own:

python -m tests.bench.plan_memory STAGE PRECISION CHECKPOINTING
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
from tests.bench.rows_plan import WAYS
from tests.bench.training import joined, run_processes

ROW_TOKENS, NUM_ROWS, PASSES, VOCAB = 512, 4, 2, 8192
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
    stage, precision, checkpointing = WAYS[name]
    # With its default the allocator keeps what was freed, and resident memory tells of more than was held at one time.
    with mock.patch.dict(os.environ, {"MALLOC_MMAP_THRESHOLD_": "131072"}):
        found = run_processes(__name__, [str(stage), precision, str(int(checkpointing))], 1)
    forecast = TrainingMemory.model_validate(found["forecast"])
    ratio = forecast.peak / found["measured"]
    yield Measured(
        f"plan.memory.{name}",
        abs(ratio - 1),
        f"forecast {forecast.peak / 1e6:.0f} MB ({_parts(forecast)}), measured {found['measured'] / 1e6:.0f} MB above "
        f"the process with its libraries; a Qwen2 of {found['parameters'] / 1e6:.1f} M parameters, ZeRO-{stage}, "
        f"{precision}, {'with' if checkpointing else 'without'} gradient checkpointing, {NUM_ROWS} rows of "
        f"{ROW_TOKENS} tokens a pass, {PASSES} passes a step, one process, bucket {BUCKET:,} entries",
    )


def _parts(forecast: TrainingMemory) -> str:
    return ", ".join(f"{name} {value / 1e6:.0f}" for name, value in forecast.model_dump().items() if name != "host")


def _model(precision: str, **changes: int) -> PreTrainedModel:
    config = Qwen2Config(**{**MODEL, "vocab_size": VOCAB, "max_position_embeddings": ROW_TOKENS, **changes})
    return Qwen2ForCausalLM(config).to(DTYPES[precision])


def _row(length: int, seed: int, vocab: int) -> Row:
    ids = np.random.default_rng(seed).integers(0, vocab, length).astype(np.int32)
    mask = np.ones(length, np.uint8)
    mask[0] = 0
    return make_row(ids, mask, "", "text", "bench", f"{seed:064x}")


def _train(model: PreTrainedModel, recipe: TrainingRecipe, runtime: TrainingRuntime, processes: Processes) -> None:
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
    rows = [_row(ROW_TOKENS, place, vocab) for place in range(PASSES * NUM_ROWS)]
    passes = [collate([[row] for row in rows[index::PASSES]]) for index in range(PASSES)]
    engine.step(passes, len(rows) * (ROW_TOKENS - 1), 1e-4)


def _child(stage: int, precision: Any, checkpointing: bool) -> dict[str, Any]:
    processes = joined()
    recipe = TrainingRecipe(
        optimizer=OptimizerRecipe(learning_rate=1e-4), rows_per_step=PASSES * NUM_ROWS, steps=1, precision=precision
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "zero.json")
        zero = {"stage": stage, "overlap_comm": False, "reduce_bucket_size": BUCKET}
        if stage >= 2:
            zero["contiguous_gradients"] = True
        if stage == 3:
            zero["stage3_param_persistence_threshold"] = 0
        file.write_text(json.dumps({"zero_optimization": zero}))
        runtime = TrainingRuntime(
            device="cpu", launcher="torchrun", deepspeed_config=str(file), gradient_checkpointing=checkpointing
        )
        # What libraries keep for themselves from their first step on is no part of the training.
        _train(_model(precision, hidden_size=64, num_hidden_layers=1, vocab_size=64), recipe, runtime, processes)
        gc.collect()
        before = resident_bytes()
        reset_peak()
        _train(_model(precision), recipe, runtime, processes)
        peak = peak_bytes()
        config = deepspeed_config(recipe, runtime, 1)
    model = architecture({**MODEL, "model_type": "qwen2", "vocab_size": VOCAB})
    forecast = training_memory(
        model,
        Sharding.of(config, 1),
        precision,
        tokens=NUM_ROWS * ROW_TOKENS,
        row_tokens=ROW_TOKENS,
        checkpointing=checkpointing,
    )
    return {"measured": peak - before, "forecast": forecast.model_dump(), "parameters": model.parameters}


MEASUREMENTS = [Measurement(f"plan_memory {name}", partial(_peak, name), (f"plan.memory.{name}",)) for name in WAYS]

if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(_child(int(sys.argv[1]), sys.argv[2], sys.argv[3] == "1")))
