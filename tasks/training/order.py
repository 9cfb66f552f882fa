"""Which rows each step takes: a function of (seed, sizes, weights, rows a step, step) alone.

Step s takes the positions s·R … (s+1)·R − 1 of an endless stream, so the data position is the step number and a
resumed run reads what it would have read. Each source of rows is an endless stream of permutations of its own; the
weights decide which source a position draws from, in a cycle that is known beforehand. A step costs O(R), and one sort
of the source's rows where it enters another permutation, wherever the step is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from tasks.artifacts.errors import BadInputError

MAX_CYCLE = 100_000
"""Positions after which the sources' turns repeat; found in 0.2 s."""

Int64 = npt.NDArray[np.int64]


class StepOrder:
    """The rows of each step, as indices into one source or into `MixedRows`. Safe to use from several threads."""

    def __init__(
        self,
        num_rows: int | Mapping[str, int],
        rows_per_step: int,
        seed: int,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """
        Args:
            num_rows: of the one source, or of each (`MixedRows.sizes`).
            rows_per_step: R.
            seed: of the permutations.
            weights: of each source, in any unit: after every n positions each has been drawn n · weight / Σ weights
                times, give or take less than one. One source needs none.

        Raises:
            BadInputError: the weights are not those of the sources, or say nothing.
        """
        sizes = {"": num_rows} if isinstance(num_rows, int) else dict(sorted(num_rows.items()))
        if weights is None and len(sizes) == 1:
            weights = dict.fromkeys(sizes, 1.0)
        turns = _turns(sizes, weights or {})
        self.num_rows = sum(size for size, share in zip(sizes.values(), turns, strict=True) if share)
        """Rows of all sources that are drawn: the length of an epoch."""
        self.rows_per_step = rows_per_step
        self.seed = seed
        self._sizes = list(sizes.values())
        self._starts = np.array([0, *accumulate(self._sizes)], np.int64)
        self._turns = np.array(turns, np.int64)
        self._source_C, self._turn_C = _cycle(turns)
        # A step may end one permutation of each source and begin the next.
        self._permutation = lru_cache(2 * len(sizes))(self._drawn)

    def rows(self, step: int) -> list[int]:
        """Row indices of a step, in the order of the stream."""
        positions_R = step * self.rows_per_step + np.arange(self.rows_per_step)
        cycle_R, place_R = np.divmod(positions_R, len(self._source_C))
        source_R = self._source_C[place_R]
        item_R = cycle_R * self._turns[source_R] + self._turn_C[place_R]
        epoch_R, offset_R = np.divmod(item_R, np.array(self._sizes)[source_R])
        rows_R = self._starts[source_R]
        for source, epoch in np.unique(np.stack((source_R, epoch_R)), axis=1).T.tolist():
            here = np.flatnonzero((source_R == source) & (epoch_R == epoch))
            rows_R[here] += self._permutation(source, epoch)[offset_R[here]]
        found: list[int] = rows_R.tolist()
        return found

    def _drawn(self, source: int, epoch: int) -> Int64:
        # The raw counter-based stream is fixed by its definition; numpy's shuffles may change between versions.
        stream = np.random.Philox(key=[self.seed, epoch], counter=[0, 0, 0, source])
        return np.argsort(stream.random_raw(self._sizes[source]), kind="stable")


def _turns(sizes: Mapping[str, int], weights: Mapping[str, float]) -> list[int]:
    """How often each source is drawn in a cycle: the smallest whole numbers with the ratios of the weights."""
    if set(weights) != set(sizes):
        raise BadInputError(f"the weights are of the sources {sorted(weights)}, the rows are of {sorted(sizes)}")
    if any(not 0 <= weight < math.inf for weight in weights.values()) or not any(weights.values()):
        raise BadInputError(f"weights are 0 or more and not all 0, not {dict(weights)}")
    empty = [name for name, size in sizes.items() if weights[name] and not size]
    if empty:
        raise BadInputError(f"{' and '.join(empty) or 'the source'} should be drawn from, but has no rows")
    # What was written is meant, 0.1 and not the binary number next to it.
    exact = [Fraction(str(weights[name])) for name in sizes]
    unit = Fraction(math.gcd(*(f.numerator for f in exact)), math.lcm(*(f.denominator for f in exact)))
    whole = [int(weight / unit) for weight in exact]
    if sum(whole) > MAX_CYCLE:
        raise BadInputError(
            f"the weights {dict(weights)} are {':'.join(map(str, whole))} in whole numbers, which come out even after "
            f"{sum(whole)} rows only; round them to two or three digits (at most {MAX_CYCLE} rows)"
        )
    return whole


def _cycle(turns: Sequence[int]) -> tuple[Int64, Int64]:
    """The source of each of the cycle's C = Σ turns positions, and how often it was drawn before in the cycle.

    To stay within one of its share, a source's draw k must lie in ⌊k C / turns⌋ … ⌈(k + 1) C / turns⌉ − 1. Of the
    sources whose draw may come, the one that must come first is taken, which meets every limit. (Taking the one that
    lags most does not: with the turns 3, 1, 36, 1, 1, 36, 3 it falls behind by 1.2.)
    """
    length = sum(turns)
    source_C, turn_C = np.empty(length, np.int64), np.empty(length, np.int64)
    drawn = [0] * len(turns)
    active = [source for source, share in enumerate(turns) if share]
    for position in range(length):
        _, source = min(
            (-(-(drawn[source] + 1) * length // turns[source]), source)
            for source in active
            if drawn[source] * length // turns[source] <= position
        )
        source_C[position], turn_C[position] = source, drawn[source]
        drawn[source] += 1
    return source_C, turn_C
