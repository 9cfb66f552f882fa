"""Peak memory of a dump above the loaded teacher. Each dump runs in a process of its own:

python -m tests.bench.dump_memory VOCABULARY DTYPE
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from tasks.dump_logits import teacher as teacher_module
from tasks.dump_logits import worker
from tasks.dump_logits.stage import DumpLogitsRuntime
from tests.bench.dumping import DTYPES, corpus_rows, dump_inputs, recipe_of, runtime_of, teacher_in
from tests.bench.jobs import run_here
from tests.bench.memory import peak_bytes, reset_peak, resident_bytes
from tests.bench.paths import ROOT
from tests.bench.records import Measured, Measurement
from tests.bench.teachers import VOCABULARIES

NUM_TOKENS = 6000
MAX_TOKENS = 512
BATCH_TOKENS = 2048


def _peak(vocabulary: str, dtype: str) -> Iterator[Measured]:
    # So that the child does not convert weights, whose memory would stay with it.
    teacher_in(vocabulary, dtype)
    command = [sys.executable, "-m", "tests.bench.dump_memory", vocabulary, dtype]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    chunk_tokens = DumpLogitsRuntime().head_chunk_tokens
    chunk = chunk_tokens * VOCABULARIES[vocabulary].size * 4
    above = result["peak"] - result["model"]
    yield Measured(
        f"dump.peak_memory_above_model.{dtype}.{vocabulary}",
        (above - chunk) / 1e6,
        f"peak {result['peak'] / 1e6:.0f} MB, {above / 1e6:.0f} MB above the process with its loaded teacher, one "
        f"chunk of {chunk_tokens} positions {chunk / 1e6:.0f} MB; {NUM_TOKENS} tokens in one shard, batches of "
        f"{BATCH_TOKENS}, 64 entries; {VOCABULARIES[vocabulary].weights}",
    )


def _child(vocabulary: str, dtype: str) -> dict[str, int]:
    directory = teacher_in(vocabulary, dtype)
    rows = corpus_rows(directory, NUM_TOKENS, MAX_TOKENS)
    sizes: dict[str, int] = {}
    load = teacher_module.load_causal_lm

    def loaded(*arguments: Any, **options: Any) -> Any:
        model = load(*arguments, **options)
        # Weights that are mapped from their file are in memory once they are read.
        for parameter in model.parameters():
            parameter.detach().sum()
        sizes["model"] = resident_bytes()
        reset_peak()
        return model

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(teacher_module, "load_causal_lm", loaded):
        inputs = dump_inputs(Path(folder), directory, {"train": rows})
        recipe = recipe_of(dtype, prior_tokens=NUM_TOKENS // 4, rows_per_shard=len(rows))
        run_here(worker.run, inputs.spec(recipe, runtime_of(tokens_per_batch=BATCH_TOKENS), inputs.artifact("memory")))
    return {"peak": peak_bytes(), **sizes}


MEASUREMENTS = [
    Measurement(
        f"dump_memory {dtype} {vocabulary}",
        partial(_peak, vocabulary, dtype),
        (f"dump.peak_memory_above_model.{dtype}.{vocabulary}",),
    )
    for vocabulary in VOCABULARIES
    for dtype in DTYPES
]

if __name__ == "__main__":
    print(json.dumps(_child(sys.argv[1], sys.argv[2])))
