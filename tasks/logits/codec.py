"""From truncated distributions to the planes that are stored, and back.

The only codec so far is `plain`: ids as the smallest of uint16 and uint32 that fits, log-probabilities as float16 or
float32. Whatever the codec, what comes back is descending, has no more mass than 1 + MASS_TOLERANCE, and differs from
what went in by at most `error_bound`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.logits.schema import LogitFormat, ValueDtype

MASS_TOLERANCE = 1e-6
"""How far above 1 the mass of a decoded position may lie: kept entries and tail, summed in float64."""
MAX_EXCESS = 1e-4
"""A position that comes in with more mass than 1 + this is no distribution; less is rounding and is scaled away."""

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
Planes = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Positions:
    """P positions with K kept entries and M temperatures. All log-probabilities are natural logarithms.

    topk_ids_PK: int32, by (logit descending, id ascending); -1 where there are fewer than K entries.
    topk_logprobs_PK: under the normaliser of the full vocabulary; -inf where the id is -1.
    tail_logprob_P: log of the mass outside the kept entries; -inf if there is none.
    gold_logprob_P: of the token that follows.
    tempered_lse_PM: log Σ_v p_v^(1/T) over the full vocabulary; log p_v at T is then log p_v / T − this.
    tempered_tail_PM: log of the mass outside the kept entries at T.
    """

    topk_ids_PK: Int32
    topk_logprobs_PK: Float32
    tail_logprob_P: Float32
    gold_logprob_P: Float32
    tempered_lse_PM: Float32
    tempered_tail_PM: Float32

    @classmethod
    def empty(cls, num_positions: int, num_kept: int, num_temperatures: int) -> Positions:
        """Room for values that are all still to be written."""
        return cls(
            np.empty((num_positions, num_kept), np.int32),
            np.empty((num_positions, num_kept), np.float32),
            np.empty(num_positions, np.float32),
            np.empty(num_positions, np.float32),
            np.empty((num_positions, num_temperatures), np.float32),
            np.empty((num_positions, num_temperatures), np.float32),
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

    @staticmethod
    def joined(parts: list[Positions]) -> Positions:
        """All positions of the parts, in order."""
        if len(parts) == 1:
            return parts[0]
        return Positions(*(np.concatenate(arrays) for arrays in zip(*(part.arrays() for part in parts), strict=True)))


class PlainCodec:
    """One plane a field."""

    def __init__(self, form: LogitFormat) -> None:
        self._value_dtype = form.value_dtype
        self._num_kept = form.num_kept
        self._id_dtype = id_dtype(form.vocab_size)
        self._no_id = np.iinfo(self._id_dtype).max

    def encode(self, positions: Positions) -> Planes:
        """The planes, each with P as its first axis.

        Raises:
            ValueError: a position is no distribution in the order described at `Positions`; the message has its index.
        """
        if positions.topk_ids_PK.shape[1] != self._num_kept:
            raise ValueError(f"{positions.topk_ids_PK.shape[1]} entries are kept, the store has {self._num_kept}")
        _check(positions)
        values_PK, tail_P = _fit(positions.topk_logprobs_PK, positions.tail_logprob_P, self._value_dtype)
        ids_PK = np.where(positions.topk_ids_PK < 0, self._no_id, positions.topk_ids_PK)
        return {
            "topk_ids": ids_PK.astype(self._id_dtype),
            "topk_logprobs": values_PK,
            "tail_logprob": tail_P,
            "gold_logprob": positions.gold_logprob_P,
            "tempered_lse": positions.tempered_lse_PM,
            "tempered_tail": positions.tempered_tail_PM,
        }

    def decode(self, planes: Mapping[str, npt.NDArray[Any]]) -> Positions:
        """The inverse, on any run of positions."""
        ids_PK = planes["topk_ids"]
        return Positions(
            np.where(ids_PK == self._no_id, np.int32(-1), ids_PK.astype(np.int32)),
            planes["topk_logprobs"].astype(np.float32),
            planes["tail_logprob"].astype(np.float32),
            planes["gold_logprob"].astype(np.float32),
            planes["tempered_lse"].astype(np.float32),
            planes["tempered_tail"].astype(np.float32),
        )

    def error_bound(self, logprobs: Float32) -> Float64:
        """Largest |decoded − true|, in nats, at each finite log-probability.

        One unit in the last place (a value is rounded to the nearest or, where its position would exceed mass 1,
        down), plus what scaling the mass to 1 takes, which in a dump is float32 rounding.
        """
        relative, absolute = (2.0**-10, 2.0**-24) if self._value_dtype == "float16" else (2.0**-23, 0.0)
        return np.abs(logprobs.astype(np.float64)) * relative + absolute + 2e-6


def codec_of(form: LogitFormat) -> PlainCodec:
    """The codec that a store names."""
    return {"plain": PlainCodec}[form.codec](form)


def id_dtype(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """The smallest type that holds all ids and one value more, which stands for "no entry"."""
    return np.uint16 if vocab_size <= np.iinfo(np.uint16).max else np.uint32


def mass(logprobs_PK: npt.NDArray[Any], tail_P: npt.NDArray[Any]) -> Float64:
    """Kept and tail mass of each position, in float64."""
    total_P: Float64 = np.exp(logprobs_PK.astype(np.float64)).sum(1) + np.exp(tail_P.astype(np.float64))
    return total_P


def _check(positions: Positions) -> None:
    values_PK, ids_PK = positions.topk_logprobs_PK, positions.topk_ids_PK
    empty_PK = ids_PK < 0
    faults = {
        "is not a number": np.isnan(values_PK).any(1) | np.isnan(positions.tail_logprob_P),
        "has a gold log-probability that is not a number": np.isnan(positions.gold_logprob_P),
        "is not in descending order": (values_PK[:, 1:] > values_PK[:, :-1]).any(1),
        "has an id without probability or a probability without id": (empty_PK != np.isneginf(values_PK)).any(1),
        f"has more mass than 1 + {MAX_EXCESS}": mass(values_PK, positions.tail_logprob_P) > 1 + MAX_EXCESS,
    }
    for fault, at_P in faults.items():
        if at_P.any():
            raise ValueError(f"position {int(np.argmax(at_P))} {fault}")


def _fit(values_PK: Float32, tail_P: Float32, value_dtype: ValueDtype) -> tuple[npt.NDArray[Any], Float32]:
    """Rounds to the nearest; positions that would then hold more mass than 1 are rounded down instead."""
    dtype = np.dtype(value_dtype)
    excess_P = np.log(np.maximum(mass(values_PK, tail_P), 1.0))
    exact_PK = values_PK.astype(np.float64) - excess_P[:, None]
    exact_tail_P = tail_P.astype(np.float64) - excess_P
    # A float16 ends at -65504. Below it an entry would turn into -inf, which means "no entry".
    exact_PK = np.where(np.isfinite(exact_PK), np.maximum(exact_PK, np.finfo(dtype).min), exact_PK)
    rounded_PK = exact_PK.astype(dtype)
    rounded_tail_P = exact_tail_P.astype(np.float32)
    over_P = mass(rounded_PK, rounded_tail_P) > 1 + MASS_TOLERANCE / 2
    rounded_PK[over_P] = _rounded_down(exact_PK[over_P], dtype)
    rounded_tail_P[over_P] = _rounded_down(exact_tail_P[over_P], np.dtype(np.float32))
    return rounded_PK, rounded_tail_P


def _rounded_down(exact: Float64, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    rounded = exact.astype(dtype)
    below = np.nextafter(rounded, np.array(-np.inf, dtype))
    # The last finite value has only -inf below it; entries that far out carry no mass either way.
    return np.where((rounded.astype(np.float64) > exact) & np.isfinite(below), below, rounded)
