"""One document as a file holds it: nothing is checked, sorted or aligned yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Ragged:
    """R lists, one after the other."""

    lengths: npt.NDArray[np.int64]
    values: npt.NDArray[Any]

    def padded(self, width: int, fill: float) -> npt.NDArray[Any]:
        """(R, width), with `fill` behind each list's end."""
        if len(self.values) == len(self.lengths) * width:
            return self.values.reshape(len(self.lengths), width)
        array = np.full((len(self.lengths), width), fill, self.values.dtype)
        array[np.arange(width) < self.lengths[:, None]] = self.values
        return array


@dataclass(frozen=True)
class Columns:
    """The lists of one row by column; a column that the file lacks is not there."""

    values: Mapping[str, npt.NDArray[Any] | Ragged]

    def flat(self, name: str) -> npt.NDArray[Any] | None:
        """A list of numbers."""
        found = self.values.get(name)
        assert not isinstance(found, Ragged)
        return found

    def nested(self, name: str) -> Ragged | None:
        """A list of lists."""
        found = self.values.get(name)
        assert found is None or isinstance(found, Ragged)
        return found

    def tokens(self) -> npt.NDArray[np.int64]:
        """The document's T ids."""
        found = self.flat("input_ids")
        assert found is not None
        return found.astype(np.int64)


@dataclass(frozen=True)
class RawDocument:
    """T tokens and R positions of up to K entries, in the file's own order and alignment."""

    where: str
    input_ids_T: npt.NDArray[np.int64]
    ids_RK: npt.NDArray[np.int64]
    """-1 where a position has fewer than K."""
    values_RK: npt.NDArray[np.float32]
    loss_mask_T: npt.NDArray[Any] | None = None
    tail_R: npt.NDArray[Any] | None = None
    gold_R: npt.NDArray[Any] | None = None
    counts_RK: npt.NDArray[np.int64] | None = None
    tempered_lse_RM: npt.NDArray[np.float32] | None = None
    tempered_tail_RM: npt.NDArray[np.float32] | None = None
