"""What the dump asks of whatever computes a teacher: rows in, truncated distributions out, and some rows once more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tasks.logits.positions import Positions
from tasks.logits.rows import Row


@dataclass(frozen=True)
class BatchResult:
    """What one forward pass, or one answer of a server, gave."""

    indices: tuple[int, ...]
    """Places of its rows among those that were given."""
    positions: tuple[Positions, ...]
    """The T − 1 positions of each of them."""
    num_tokens: int
    num_padded: int
    """Tokens with padding."""


@dataclass(frozen=True)
class GoldSample:
    """Gold log-probabilities of one row, computed a second time: no padding, no truncation."""

    index: int
    """Place of the row among those that were given."""
    where: np.ndarray
    """Up to 32 of its positions."""
    logprobs: np.ndarray


class Distributions(Protocol):
    """A teacher at work: in this process (forward.py) or behind a server (served_forward.py)."""

    def batches(self, rows: Sequence[Row]) -> Iterator[BatchResult]:
        """All rows of more than one token, in whatever order."""

    def gold(self, rows: Sequence[Row], count: int) -> list[GoldSample]:
        """Computes `count` rows spread over those that predict something once more."""


def gold_rows(rows: Sequence[Row], count: int) -> list[int]:
    """Places of `count` rows spread over those that predict something."""
    candidates = np.flatnonzero([len(row.input_ids) > 1 for row in rows])
    places = np.unique(np.linspace(0, len(candidates) - 1, min(count, len(candidates))).astype(int))
    return [int(index) for index in candidates[places]]
