"""Passes of a step: by hand, and against what loaders of several processes deal."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.logits.rows import Row, make_row
from tasks.planning.passes import pass_tokens, step_passes
from tasks.training.loader import StepLoader
from tasks.training.order import StepOrder
from tasks.training.packing import Packing
from tasks.training.rows import CorpusRows

LONGEST, NUM_ROWS, ROWS_PER_STEP, NUM_STEPS = 64, 300, 32, 24


def rows() -> list[Row]:
    """Documents whose lengths differ as those of the web do."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(2.6, 0.7, NUM_ROWS), 4, LONGEST).astype(int)
    # One as long as can be in each step would be drawn by chance only: here it is common.
    lengths[::12] = LONGEST
    return [
        make_row(np.ones(length, np.int32), np.ones(length, np.uint8), "", "text", "t", f"{n:064x}")
        for n, length in enumerate(lengths)
    ]


@pytest.mark.parametrize(("micro_batch", "world_size"), [(64, 3), (128, 3), (192, 3), (256, 3), (128, 1)])
def test_rounds_are_those_that_loaders_deal(micro_batch: int, world_size: int) -> None:
    source, order = CorpusRows(rows()), StepOrder(NUM_ROWS, ROWS_PER_STEP, 0)
    loaders = [
        StepLoader(source, order, NUM_STEPS, Packing(micro_batch), rank, world_size) for rank in range(world_size)
    ]
    rounds, tokens, padded, dealt = [], [], 0, []
    for step in range(NUM_STEPS):
        shares = [loader.load(step) for loader in loaders]
        sizes = [[batch.input_ids_BL.numel() for batch in share.batches] for share in shares]
        rounds.append(len(sizes[0]))
        # All wait for the one whose pass is largest.
        tokens.append(sum(max(sizes_R) for sizes_R in zip(*sizes, strict=True)))
        dealt.append(shares[0].num_tokens)
        padded += shares[0].num_padded
    for loader in loaders:
        loader.close()
    real = sum(dealt) / (sum(dealt) + padded)
    forecast = step_passes(
        tokens=float(np.mean(dealt)) / real,
        deviation=float(np.std(dealt)) / real,
        full=pass_tokens(micro_batch, LONGEST),
        devices=world_size,
    )
    assert forecast.rounds == pytest.approx(np.mean(rounds), rel=0.08)
    assert forecast.tokens == pytest.approx(np.mean(tokens), rel=0.08)


def test_a_little_more_than_a_round_is_two() -> None:
    one, two = (step_passes(tokens=tokens, deviation=0, full=1000, devices=8) for tokens in (8000, 8001))
    assert (one.rounds, one.tokens) == (1, 1000)
    assert (two.rounds, two.tokens) == (2, 2000)
    # Half of the steps need one round more than the others.
    spread = step_passes(tokens=8000, deviation=400, full=1000, devices=8)
    assert spread.rounds == pytest.approx(1.5)
    assert spread.tokens == pytest.approx(1500)
    # What fits into one pass takes no longer than it is, and a lone device repeats nothing.
    assert step_passes(tokens=300, deviation=0, full=1000, devices=8).tokens == 300
    alone = step_passes(tokens=2500, deviation=0, full=1000, devices=1)
    assert (alone.rounds, alone.tokens) == (3, 2500)
    assert step_passes(tokens=0, deviation=0, full=1000, devices=8).rounds == 0


def test_a_pass_holds_whole_rows() -> None:
    assert pass_tokens(8192, 4096) == 8192
    assert pass_tokens(10_000, 4096) == 8192
    assert pass_tokens(1024, 4096) == 4096, "at least one, whatever it says"
