"""Entries rank by rank: the first of all positions, then the second of all that have one, and so on.

With the positions sorted by how many entries they have, a rank's entries belong to a prefix of them. So both
directions are K copies of runs, however ragged the positions are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


class RankOrder:
    """The order of the entries of P positions of at most K."""

    def __init__(self, num_positions: int, width: int, counts_P: npt.NDArray[np.int64] | None = None) -> None:
        """
        Args:
            num_positions: P.
            width: K.
            counts_P: entries of each position; None where all have K.

        Raises:
            ValueError: a count is larger than K.
        """
        self._order_P: npt.NDArray[np.int64] | None = None
        self.num_positions = num_positions
        self.sizes = [num_positions] * width
        """Positions that have an entry of each rank."""
        if counts_P is not None:
            if counts_P.max(initial=0) > width:
                raise ValueError(f"a position has {counts_P.max()} entries where at most {width} are kept")
            self._order_P = np.argsort(-counts_P, kind="stable")
            histogram = np.bincount(counts_P, minlength=width + 1)
            self.sizes = (num_positions - np.cumsum(histogram)[:width]).tolist()
        self.num_entries = sum(self.sizes)

    def flatten(self, array_PK: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The entries in order."""
        array_KP = np.ascontiguousarray((array_PK if self._order_P is None else array_PK[self._order_P]).T)
        if self._order_P is None:
            return array_KP.reshape(-1)
        return np.concatenate([row[:size] for row, size in zip(array_KP, self.sizes, strict=True)])

    def spread(self, entries_E: npt.NDArray[Any], target_KP: npt.NDArray[Any]) -> None:
        """Writes entries to their ranks; the positions are in the order of this class, and the rest is not touched."""
        if self._order_P is None:
            target_KP[:] = entries_E.reshape(target_KP.shape)
            return
        start = 0
        for row, size in zip(target_KP, self.sizes, strict=True):
            row[:size] = entries_E[start : start + size]
            start += size

    def rows(self, array_KP: npt.NDArray[Any], *, above: bool = False) -> list[npt.NDArray[Any]]:
        """For each rank but the first, its entries; or those of the rank before that belong to the same positions."""
        return [row[:size] for row, size in zip(array_KP[:-1] if above else array_KP[1:], self.sizes[1:], strict=True)]

    def restore(self, array_KP: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(P, K) in the positions' own order, contiguous."""
        array_PK = np.ascontiguousarray(array_KP.T)
        if self._order_P is None:
            return array_PK
        restored_PK = np.empty_like(array_PK)
        restored_PK[self._order_P] = array_PK
        return restored_PK
