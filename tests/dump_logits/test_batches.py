"""Batches: every row once, within the budget, and little padding on lengths as corpora have them."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.dump_logits.batches import MAX_PADDING, length_buckets, padding


def lengths_of(kind: str, count: int) -> list[int]:
    generator = np.random.default_rng(0)
    if kind == "lognormal":
        # Documents of web text cut at 2048 tokens: median 400, a third of the tokens in full-length rows.
        values = np.exp(generator.normal(np.log(400), 1.0, count)).clip(1, 2048)
    elif kind == "chat":
        values = np.exp(generator.normal(np.log(60), 0.8, count)).clip(2, 1024)
    elif kind == "uniform":
        values = generator.integers(1, 4096, count)
    else:
        values = np.where(generator.random(count) < 0.01, 4096, 3)
    return [int(value) for value in values]


@pytest.mark.parametrize("count", [3, 128, 1024, 5000])
@pytest.mark.parametrize("kind", ["lognormal", "chat", "uniform", "two lengths"])
def test_batches_hold_every_row_once_with_little_padding(kind: str, count: int) -> None:
    lengths = lengths_of(kind, count)
    batches = length_buckets(lengths, 8192)
    assert sorted(index for batch in batches for index in batch) == [
        index for index, length in enumerate(lengths) if length > 1
    ]
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= 8192
    assert padding(batches, lengths) <= MAX_PADDING


def test_batches_are_nearly_as_few_as_tokens_allow() -> None:
    """The bound on padding must not be bought with batches of one row: 1.15 of the fewest possible batches."""
    for kind in ("lognormal", "chat"):
        lengths = lengths_of(kind, 5000)
        assert len(length_buckets(lengths, 8192)) <= 1.15 * sum(lengths) / 8192


def test_rows_are_finished_in_about_their_order() -> None:
    """A window's rows are done before the next window's begin, however many rows a shard has."""
    lengths = lengths_of("lognormal", 20000)
    done = [index for batch in length_buckets(lengths, 1024) for index in batch]
    worst = max(abs(place - index) for place, index in enumerate(done))
    assert worst < 1000
