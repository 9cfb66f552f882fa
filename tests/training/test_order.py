"""Which rows a step reads: any step alone, every source by its weight."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tasks.artifacts.errors import BadInputError
from tasks.training.order import StepOrder

SIZES = {"a": 10, "b": 7, "c": 4}
WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2}


def test_every_epoch_is_another_permutation_and_steps_run_across_epochs() -> None:
    order = StepOrder(num_rows=12, rows_per_step=5, seed=3)
    stream = [row for step in range(12) for row in order.rows(step)]
    epochs = [stream[start : start + 12] for start in range(0, 60, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    # Any step alone, as after a resume, and in any order.
    assert [StepOrder(12, 5, 3).rows(step) for step in (7, 2)] == [stream[35:40], stream[10:15]]
    assert StepOrder(12, 5, 4).rows(0) != stream[:5]


def test_the_order_is_fixed_for_all_time() -> None:
    """A change here would resume running trainings on other rows and must raise the stages' versions."""
    assert StepOrder(10, 10, 0).rows(0) == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert StepOrder(SIZES, 12, 0, WEIGHTS).rows(0) == [0, 14, 2, 18, 9, 12, 1, 16, 8, 20, 5, 15]


def test_sources_are_streams_of_their_own() -> None:
    order = StepOrder(SIZES, 6, 1, WEIGHTS)
    stream = [row for step in range(100) for row in order.rows(step)]
    starts = {"a": 0, "b": 10, "c": 17}
    for name, size in SIZES.items():
        drawn = [row - starts[name] for row in stream if starts[name] <= row < starts[name] + size]
        epochs = [drawn[start : start + size] for start in range(0, len(drawn) - size + 1, size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1
    # The same corpus from two teachers: not the same documents at the same time.
    twins = StepOrder({"a": 50, "b": 50}, 100, 0, {"a": 1, "b": 1}).rows(0)
    assert [row for row in twins if row < 50] != [row - 50 for row in twins if row >= 50]


@pytest.mark.parametrize(
    "weights",
    [
        (2, 1),
        (0.7, 0.2, 0.1),
        (0.123, 0.456, 0.421, 0),
        # Drawing from the one that lags most would fall 1.2 behind here.
        (3, 1, 36, 1, 1, 36, 3),
        (2, 1, 58, 1, 3, 1, 59, 58, 24),
    ],
)
def test_every_beginning_keeps_the_weights(weights: tuple[float, ...]) -> None:
    sizes = dict.fromkeys("abcdefghi"[: len(weights)], 3)
    order = StepOrder(sizes, 2000, 0, dict(zip(sizes, weights, strict=True)))
    source_N = np.array(order.rows(0)) // 3
    n_N = np.arange(1, 2001)
    for source, weight in enumerate(weights):
        counts_N = np.cumsum(source_N == source)
        assert np.abs(counts_N - n_N * weight / sum(weights)).max() < 1


def test_a_far_step_is_as_good_as_the_first() -> None:
    order = StepOrder({"a": 10, "b": 7}, 100, 0, {"a": 1 / 3, "b": 2 / 3})
    assert StepOrder({"a": 10, "b": 7}, 1000, 0, {"a": 1 / 3, "b": 2 / 3}).rows(10**7) == [
        row for step in range(10**8, 10**8 + 10) for row in order.rows(step)
    ]
    drawn = Counter(row < 10 for row in StepOrder({"a": 10, "b": 7}, 300, 0, {"a": 1, "b": 2}).rows(10**9))
    assert drawn == {True: 100, False: 200}


def test_an_epoch_is_the_rows_of_all_sources_that_are_drawn() -> None:
    assert StepOrder(SIZES, 1, 0, WEIGHTS).num_rows == 21
    assert StepOrder(SIZES, 1, 0, {**WEIGHTS, "b": 0}).num_rows == 14


@pytest.mark.parametrize(
    ("sizes", "weights", "said"),
    [
        (SIZES, {"a": 1.0}, "weights are of the sources"),
        (SIZES, None, "weights are of the sources"),
        (SIZES, {**WEIGHTS, "a": -1.0}, "0 or more"),
        (SIZES, dict.fromkeys(SIZES, 0.0), "0 or more"),
        (SIZES, {**WEIGHTS, "a": float("nan")}, "0 or more"),
        ({**SIZES, "c": 0}, WEIGHTS, "c should be drawn from"),
        (0, None, "no rows"),
        (SIZES, {"a": 0.123456789, "b": 1, "c": 1}, "round them"),
    ],
)
def test_weights_that_say_nothing_are_refused(
    sizes: int | dict[str, int], weights: dict[str, float] | None, said: str
) -> None:
    with pytest.raises(BadInputError, match=said):
        StepOrder(sizes, 1, 0, weights)
