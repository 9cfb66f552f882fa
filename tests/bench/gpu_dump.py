"""What a dump on a GPU costs over the teacher's bare forward pass with logits.

As dump_speed.py: two dumps by the stage's own worker that differ by some rows are subtracted. The teacher has the shape
of Qwen2.5-14B with 12 of its 48 layers and random weights, on which no time here depends; with all layers the head and
what follows it would weigh less.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from flows.model_shapes import SHAPES
from tasks.dump_logits import worker
from tasks.logits.rows import Row
from tasks.modeling.model_files import load_causal_lm, save_causal_lm
from tasks.modeling.tokenizer_files import load_tokenizer, save_tokenizer
from tests.bench.cuda import require_cuda, seconds
from tests.bench.dumping import corpus_rows, dump_inputs, recipe_of
from tests.bench.jobs import JobInputs, run_here
from tests.bench.paths import BENCH
from tests.bench.records import Measured, Measurement
from tests.bench.teachers import teacher_directory

SHAPE, LAYERS = "Qwen--Qwen2.5-14B", 12
ROW_TOKENS, BATCH_ROWS = 2048, 4
SMALL_ROWS, LARGE_ROWS = 4, 36
"""One shard each."""
REPETITIONS = 5


def _teacher(device: str) -> Path:
    """Its directory, with Qwen2.5's tokenizer; 10 GB."""
    target = BENCH / f"teacher-{SHAPE}-{LAYERS}"
    if not (target / "tokenizer.json").is_file():
        shape = json.loads((SHAPES / f"{SHAPE}.json").read_text())
        config = AutoConfig.for_model(**shape | {"num_hidden_layers": LAYERS})
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        save_causal_lm(model.to("cpu"), target, dtype=torch.bfloat16)
        save_tokenizer(load_tokenizer(teacher_directory("152k")), target)
    return target


def _rows(teacher: Path) -> list[Row]:
    rows = corpus_rows(teacher, 10**9, ROW_TOKENS, 4 * ROW_TOKENS)
    return [row for row in rows if len(row.input_ids) == ROW_TOKENS][:LARGE_ROWS]


def _over_forward() -> Iterator[Measured]:
    device = require_cuda()
    teacher = _teacher(device)
    rows = _rows(teacher)
    model = load_causal_lm(teacher, dtype=torch.bfloat16, device=device)
    with tempfile.TemporaryDirectory() as folder:
        dumps = {
            count: dump_inputs(Path(folder, str(count)), teacher, {"train": rows[:count]})
            for count in (SMALL_ROWS, LARGE_ROWS)
        }
        ratios, forwards = [], []
        # Compiles kernels, fills the caches of files.
        _dump(dumps[SMALL_ROWS], device, REPETITIONS)
        _forward(model, rows[:SMALL_ROWS])
        for turn in range(REPETITIONS):
            small = seconds(partial(_dump, dumps[SMALL_ROWS], device, turn))
            forward = seconds(partial(_forward, model, rows[SMALL_ROWS:]))
            large = seconds(partial(_dump, dumps[LARGE_ROWS], device, turn))
            ratios.append((large - small) / forward)
            forwards.append(forward)
    tokens = (LARGE_ROWS - SMALL_ROWS) * ROW_TOKENS
    yield Measured(
        "gpu.dump_over_forward.bf16",
        statistics.median(ratios),
        f"{torch.cuda.get_device_name()}; {tokens} tokens in rows of {ROW_TOKENS}, {BATCH_ROWS} a batch, 64 entries, "
        f"written and committed to local disk; forward {tokens / statistics.median(forwards):.0f} tokens/s; ratios "
        f"{min(ratios):.3f} to {max(ratios):.3f}; {SHAPE} with {LAYERS} layers, random weights",
        REPETITIONS,
    )


def _dump(inputs: JobInputs, device: str, turn: int) -> None:
    recipe = recipe_of("bf16", prior_tokens=ROW_TOKENS, rows_per_shard=LARGE_ROWS)
    runtime = {
        "device": device,
        "tokens_per_batch": BATCH_ROWS * ROW_TOKENS,
        "head_chunk_tokens": 4096,
        "gold_rows_per_shard": 1,
    }
    run_here(worker.run, inputs.spec(recipe, runtime, inputs.artifact(f"turn-{turn}")))


@torch.inference_mode()
def _forward(model: PreTrainedModel, rows: Sequence[Row]) -> None:
    for start in range(0, len(rows), BATCH_ROWS):
        batch = np.stack([row.input_ids for row in rows[start : start + BATCH_ROWS]])
        ids_BT = torch.from_numpy(batch.astype(np.int64)).to(model.device)
        _ = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), use_cache=False).logits


MEASUREMENTS = [Measurement("gpu_dump_over_forward", _over_forward, ("gpu.dump_over_forward.*",))]
