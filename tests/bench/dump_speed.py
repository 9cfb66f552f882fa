"""What a dump costs over the teacher's bare forward pass with logits, and how much of what it computes is padding.

The dump is the stage's own worker in this process. Two dumps that differ by some rows alone are subtracted, so that
loading, the prior and the check of sampled rows, which a long dump has once a shard or once, cancel out.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from tasks.dump_logits import worker
from tasks.dump_logits.batches import length_buckets, padding
from tasks.dump_logits.stage import DumpLogitsRuntime
from tasks.logits.rows import Row
from tasks.modeling.model_files import load_causal_lm
from tests.bench.dumping import DTYPES, corpus_rows, dump_inputs, recipe_of, runtime_of, teacher_in
from tests.bench.jobs import JobInputs, run_here
from tests.bench.real_logits import MAX_TOKENS
from tests.bench.records import Measured, Measurement
from tests.bench.teachers import VOCABULARIES, teacher_directory
from tests.bench.timing import cpu_seconds

ROW_TOKENS = 512
SMALL_ROWS, LARGE_ROWS = 1, 7
"""One shard each; the difference, 3072 tokens, is 10 to 20 s of forward pass on a core."""
BATCH_ROWS = 2
"""Rows of one forward pass: at 152k ids its float32 logits are 620 MB."""
REPETITIONS = 5


def _over_forward(vocabulary: str, dtype: str) -> Iterator[Measured]:
    teacher = teacher_in(vocabulary, dtype)
    rows = [row for row in corpus_rows(teacher, 10**9, ROW_TOKENS, 4 * ROW_TOKENS) if len(row.input_ids) == ROW_TOKENS]
    rows = rows[:LARGE_ROWS]
    model = load_causal_lm(teacher, dtype=getattr(torch, DTYPES[dtype]))
    with tempfile.TemporaryDirectory() as folder:
        dumps = {
            count: dump_inputs(Path(folder, str(count)), teacher, {"train": rows[:count]})
            for count in (SMALL_ROWS, LARGE_ROWS)
        }
        ratios, forwards = [], []
        # Fills caches and compiles kernels.
        _dump(dumps[SMALL_ROWS], dtype, REPETITIONS)
        for turn in range(REPETITIONS):
            run = [
                partial(_dump, dumps[SMALL_ROWS], dtype, turn),
                partial(_forward, model, rows[SMALL_ROWS:]),
                partial(_dump, dumps[LARGE_ROWS], dtype, turn),
            ]
            small, forward, large = (cpu_seconds(action) for action in run)
            ratios.append((large - small) / forward)
            forwards.append(forward)
    seconds = statistics.median(forwards)
    tokens = (LARGE_ROWS - SMALL_ROWS) * ROW_TOKENS
    yield Measured(
        f"dump.over_forward.{dtype}.{vocabulary}",
        statistics.median(ratios),
        f"{tokens} tokens in rows of {ROW_TOKENS}, {BATCH_ROWS} a batch, 64 entries, written and committed; forward "
        f"{tokens / seconds:.0f} tokens a core-second; ratios {min(ratios):.3f} to {max(ratios):.3f}; "
        f"{model.config.num_hidden_layers} layers, {VOCABULARIES[vocabulary].weights}",
        REPETITIONS,
    )


def _dump(inputs: JobInputs, dtype: str, turn: int) -> None:
    recipe = recipe_of(dtype, prior_tokens=ROW_TOKENS, rows_per_shard=LARGE_ROWS)
    runtime = runtime_of(tokens_per_batch=BATCH_ROWS * ROW_TOKENS, gold_rows_per_shard=1)
    run_here(worker.run, inputs.spec(recipe, runtime, inputs.artifact(f"turn-{turn}")))


@torch.inference_mode()
def _forward(model: PreTrainedModel, rows: Sequence[Row]) -> None:
    for start in range(0, len(rows), BATCH_ROWS):
        batch = np.stack([row.input_ids for row in rows[start : start + BATCH_ROWS]])
        ids_BT = torch.from_numpy(batch.astype(np.int64))
        _ = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), use_cache=False).logits


def _padding() -> Iterator[Measured]:
    rows = corpus_rows(teacher_directory("49k"), 10**9, MAX_TOKENS)
    lengths = [len(row.input_ids) for row in rows]
    tokens_per_batch = DumpLogitsRuntime().tokens_per_batch
    batches = length_buckets(lengths, tokens_per_batch)
    low, middle, high = np.percentile(lengths, (10, 50, 90))
    yield Measured(
        "dump.padding",
        padding(batches, lengths),
        f"all {len(rows)} documents of Python's documentation cut at {MAX_TOKENS} tokens (10th, 50th and 90th "
        f"percentile {low:.0f}, {middle:.0f} and {high:.0f}), {len(batches)} batches of {tokens_per_batch} tokens",
    )


MEASUREMENTS = [
    Measurement("dump_padding", _padding, ("dump.padding",)),
    *(
        Measurement(
            f"dump_over_forward {dtype} {vocabulary}",
            partial(_over_forward, vocabulary, dtype),
            (f"dump.over_forward.{dtype}.{vocabulary}",),
        )
        for vocabulary in VOCABULARIES
        for dtype in DTYPES
    ),
]
