"""Truncated next-token distributions in memory."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

MASS_TOLERANCE = 1e-6
"""How far above 1 the mass of a decoded position may lie: kept entries and tail, summed in float64."""
MAX_EXCESS = 1e-4
"""A position that comes in with more mass than 1 + this is no distribution; less is rounding and is scaled away."""

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
UInt16 = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Positions:
    """P positions with room for K entries and M temperatures. All log-probabilities are natural logarithms.

    topk_ids_PK: int32, by (logit descending, id ascending); -1 where there are fewer than K entries.
    topk_logprobs_PK: under the normaliser of the full vocabulary; -inf where the id is -1.
    tail_logprob_P: log of the mass outside the kept entries; -inf if there is none.
    gold_logprob_P: of the token that follows.
    tempered_lse_PM: log Σ_v p_v^(1/T) over the full vocabulary; log p_v at T is then log p_v / T − this.
    tempered_tail_PM: log of the mass outside the kept entries at T.
    counts_PK: with sampled support, how often each entry was drawn; else of shape (P, 0).
    """

    topk_ids_PK: Int32
    topk_logprobs_PK: Float32
    tail_logprob_P: Float32
    gold_logprob_P: Float32
    tempered_lse_PM: Float32
    tempered_tail_PM: Float32
    counts_PK: UInt16

    @classmethod
    def empty(cls, num_positions: int, width: int, num_temperatures: int, *, counted: bool = False) -> Positions:
        """Room for values that are all still to be written."""
        return cls(
            np.empty((num_positions, width), np.int32),
            np.empty((num_positions, width), np.float32),
            np.empty(num_positions, np.float32),
            np.empty(num_positions, np.float32),
            np.empty((num_positions, num_temperatures), np.float32),
            np.empty((num_positions, num_temperatures), np.float32),
            np.empty((num_positions, width if counted else 0), np.uint16),
        )

    def arrays(self) -> list[npt.NDArray[Any]]:
        """The fields in order."""
        return [getattr(self, field.name) for field in fields(self)]

    def __len__(self) -> int:
        return len(self.tail_logprob_P)

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return sum(array.nbytes for array in self.arrays())

    def cut(self, start: int, stop: int) -> Positions:
        """Positions start … stop − 1, as views."""
        return Positions(*(array[start:stop] for array in self.arrays()))

    def frozen(self) -> Positions:
        """The same arrays, which can no longer be written to."""
        for array in self.arrays():
            array.flags.writeable = False
        return self

    @staticmethod
    def joined(parts: list[Positions]) -> Positions:
        """All positions of the parts, in order."""
        if len(parts) == 1:
            return parts[0]
        return Positions(*(np.concatenate(arrays) for arrays in zip(*(part.arrays() for part in parts), strict=True)))


def mass(logprobs_PK: npt.NDArray[Any], tail_P: npt.NDArray[Any]) -> Float64:
    """Kept and tail mass of each position, in float64."""
    total_P: Float64 = np.exp(logprobs_PK.astype(np.float64)).sum(1) + np.exp(tail_P.astype(np.float64))
    return total_P


def check(positions: Positions) -> None:
    """Raises ValueError, with the place, where a position is no distribution in the order described at `Positions`."""
    values_PK, ids_PK = positions.topk_logprobs_PK, positions.topk_ids_PK
    empty_PK = ids_PK < 0
    faults = {
        "is not a number": np.isnan(values_PK).any(1) | np.isnan(positions.tail_logprob_P),
        "has a gold log-probability that is not a number": np.isnan(positions.gold_logprob_P),
        "is not in descending order": (values_PK[:, 1:] > values_PK[:, :-1]).any(1),
        "has an id without probability or a probability without id": (empty_PK != np.isneginf(values_PK)).any(1),
        f"has more mass than 1 + {MAX_EXCESS}": mass(values_PK, positions.tail_logprob_P) > 1 + MAX_EXCESS,
    }
    if positions.counts_PK.shape[1]:
        faults["has an entry that was never drawn, or a draw without entry"] = (
            (positions.counts_PK == 0) != empty_PK
        ).any(1)
    for fault, at_P in faults.items():
        if at_P.any():
            raise ValueError(f"position {int(np.argmax(at_P))} {fault}")
