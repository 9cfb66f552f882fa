"""What a whole optimiser step costs on stored logits, read while it trains, over the same step with CE only.

Both ways train in one process on the same documents in the same order, in turns. A turn opens its data anew and takes
some steps, so whatever it reads ahead is in its own time: all threads' CPU time counts.

python -m tests.bench.train_step FOLDER DIRECTORY measures, started by `run_processes`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from tasks.artifacts.store import open_store
from tasks.modeling.model_files import load_causal_lm
from tasks.training.loader import StepLoader
from tasks.training.losses import LossWeights
from tasks.training.order import StepOrder
from tasks.training.packing import Packing
from tasks.training.processes import Processes
from tasks.training.rows import CorpusRows, RowSource
from tests.bench.records import Measured, Measurement
from tests.bench.stores import data_said, long_shard_of_test, open_reader, write_store
from tests.bench.supports import TOP_64
from tests.bench.teachers import VOCABULARIES, teacher_directory
from tests.bench.timing import paired
from tests.bench.training import joined, make_engine, run_processes

VOCABULARY = "49k"
LAYERS = 10
"""Of the model's 30. The head has 44 % of the products' FLOPs then; in a 14B with 152k ids it has 5 %."""
DIRECTORY = "artifacts/dump_logits/bench"
ROW_TOKENS, ROWS_PER_STEP = 512, 4
STEPS_PER_TURN = 2
REPETITIONS = 5
LEARNING_RATE = 1e-5
STORED, CE_ONLY = LossWeights(forward_kl=0.9, ce=0.1), LossWeights(ce=1.0)


def _step() -> Iterator[Measured]:
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(str(Path(folder, "store")))
        shard = long_shard_of_test(VOCABULARY, TOP_64, ROW_TOKENS)
        write_store(store, DIRECTORY, Path(folder, "draft"), VOCABULARY, TOP_64, shard=shard)
        # So that the child does not unpack the weights.
        teacher_directory(VOCABULARY)
        found = run_processes(__name__, [store.uri, DIRECTORY], 1)
    said = (
        f"steps of {ROWS_PER_STEP} documents of {ROW_TOKENS} tokens in one pass; the first {LAYERS} of 30 layers, "
        f"hidden {found['hidden']}, {found['parameters'] / 1e6:.0f} M parameters, {found['head_share']:.0%} of the "
        f"products in the head; float32, ZeRO-1 in one process; 64 entries, 0.9 forward KL + 0.1 CE against CE on rows "
        f"in memory; "
        f"turns of {STEPS_PER_TURN} steps, each with a new reader on local files; {data_said(VOCABULARY)}, "
        f"laid end to end"
    )
    yield Measured("train.step.stored_logits_over_ce", found["ratio"], f"{found['spread']}; {said}", REPETITIONS)
    yield Measured(
        "train.step.data_wait",
        found["wait"],
        f"the wait for the first step of a turn, which nothing hides, counted; without it {found['later_wait']:.2e}; "
        f"{found['step_seconds']:.1f} s a step; {said}",
        REPETITIONS * STEPS_PER_TURN,
    )


def _pruned() -> PreTrainedModel:
    model: Any = load_causal_lm(teacher_directory(VOCABULARY), dtype=torch.float32)
    model.model.layers = model.model.layers[:LAYERS]
    model.config.num_hidden_layers = LAYERS
    result: PreTrainedModel = model
    return result


def _head_share(model: PreTrainedModel) -> float:
    """Of the multiplications with matrices, attention's own products left out."""
    head = model.get_output_embeddings().weight
    body = sum(weight.numel() for weight in model.parameters() if weight.ndim == 2 and weight is not head)
    return float(head.numel() / (body + head.numel()))


class _Way:
    """One of the two ways of training, with the times of its steps."""

    def __init__(self, open_source: Callable[[], RowSource], weights: LossWeights, processes: Processes) -> None:
        model = _pruned()
        self.hidden = model.config.hidden_size
        self.parameters = sum(weight.numel() for weight in model.parameters())
        self.head_share = _head_share(model)
        self.engine = make_engine(
            model,
            VOCABULARIES[VOCABULARY].size,
            weights,
            processes,
            zero=1,
            learning_rate=LEARNING_RATE,
            rows_per_step=ROWS_PER_STEP,
            steps=STEPS_PER_TURN,
        )
        self._open_source = open_source
        self._turns = 0
        self.waits: list[list[float]] = []
        """Seconds of each step, by turn."""
        self.walls: list[list[float]] = []

    def turn(self) -> None:
        """Trains on the documents that the turn's number draws."""
        source = self._open_source()
        order = StepOrder(len(source), ROWS_PER_STEP, seed=self._turns)
        waits, walls = [], []
        with closing(StepLoader(source, order, STEPS_PER_TURN, Packing(ROWS_PER_STEP * ROW_TOKENS), 0, 1)) as loader:
            for step in range(STEPS_PER_TURN):
                started = time.perf_counter()
                share = loader.load(step)
                self.engine.step(share.batches, share.num_targets, LEARNING_RATE)
                waits.append(share.wait_seconds)
                walls.append(time.perf_counter() - started)
        self._turns += 1
        self.waits.append(waits)
        self.walls.append(walls)


def _child(store: str, directory: str) -> dict[str, Any]:
    processes = joined()
    rows = long_shard_of_test(VOCABULARY, TOP_64, ROW_TOKENS).rows
    stored = _Way(lambda: open_reader(open_store(store), directory).rows("train"), STORED, processes)
    plain = _Way(lambda: CorpusRows(rows), CE_ONLY, processes)
    pairs = paired(stored.turn, plain.turn, REPETITIONS)
    # The turn that warms up is no step of a training.
    waits, walls = np.array(stored.waits[1:]), np.array(stored.walls[1:])
    return {
        "ratio": pairs.ratio,
        "spread": pairs.spread,
        "wait": waits.sum() / walls.sum(),
        "later_wait": waits[:, 1:].sum() / walls[:, 1:].sum(),
        "step_seconds": float(np.median(walls)),
        "hidden": stored.hidden,
        "parameters": stored.parameters,
        "head_share": stored.head_share,
    }


MEASUREMENTS = [Measurement("train_step", _step, ("train.step.*",))]

if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(_child(sys.argv[1], sys.argv[2])))
