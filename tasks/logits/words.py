"""Numbers of which a document has one a token or position, as 16-bit words, and words as bytes that lie apart."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.logits.positions import Float32, Float64, Positions

LOGPROB_UNIT = 256
"""Gold log-probabilities and the odds of the tail are stored in units of 1/256 nat."""
TEMPERED_UNIT = 512
"""Normalisers at other temperatures: 1/512 nat, ±64."""
NO_TAIL = 0
IMPOSSIBLE = 65535

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[Any]


class Cursor:
    """Takes one array after the other from a row of bytes."""

    def __init__(self, row: Bytes, start: int = 0) -> None:
        self._row = row
        self._at = start

    def take(self, count: int) -> Bytes:
        """The next bytes; raises ValueError where the row ends before."""
        self._at += count
        if self._at > len(self._row):
            raise ValueError(f"a row of {len(self._row)} bytes should hold {self._at}")
        return self._row[self._at - count : self._at]


def byte_of(words: Words, place: int) -> Bytes:
    """The byte of that place, 0 the lowest, of each word."""
    return (words.reshape(-1) >> np.asarray(8 * place).astype(words.dtype)).astype(np.uint8)


def all_bytes(words: Words) -> list[Bytes]:
    """Each byte of all words, the lowest first."""
    little = np.ascontiguousarray(words.reshape(-1)).astype(words.dtype.newbyteorder("<"))
    return [little.view(np.uint8)[place :: words.itemsize] for place in range(words.itemsize)]


def take_pairs(cursor: Cursor, count: int) -> Words:
    """uint16 words whose low bytes all come before their high bytes."""
    low = cursor.take(count).astype(np.uint16)
    return low | cursor.take(count).astype(np.uint16) << 8


def take_words(low: Cursor, side: Cursor, count: int, size: int) -> Words:
    """Words whose lowest bytes are in one row and the others in another: uint16, or uint32 for more than two bytes."""
    dtype: np.dtype[Any] = np.dtype(np.uint16 if size == 2 else np.uint32)
    words: Words = low.take(count).astype(dtype)
    for place in range(1, size):
        words |= side.take(count).astype(dtype) << (8 * place)
    return words


def logprob_words(logprobs: Float32) -> npt.NDArray[np.uint16]:
    """−log p in units; what is beyond 255.99 nats is stored there, and −inf as the last value."""
    with np.errstate(invalid="ignore"):
        units = np.clip(np.rint(-logprobs.astype(np.float64) * LOGPROB_UNIT), 0, IMPOSSIBLE - 1)
    return np.where(np.isneginf(logprobs), IMPOSSIBLE, units).astype(np.uint16)


def logprobs_of(words: Words) -> Float32:
    """The inverse."""
    values = words.astype(np.float32) / np.float32(-LOGPROB_UNIT)
    values[words == IMPOSSIBLE] = -np.inf
    return values


def odds_words(positions: Positions) -> npt.NDArray[np.uint16]:
    """log(tail / kept) in units above −128: as exact for a tail of nearly everything as for one of nearly nothing."""
    with np.errstate(divide="ignore"):
        kept_P = np.log(np.exp(positions.topk_logprobs_PK).sum(1, dtype=np.float64))
        units_P = np.rint((positions.tail_logprob_P.astype(np.float64) - kept_P) * LOGPROB_UNIT) + 32768
    units_P = np.clip(np.nan_to_num(units_P, posinf=IMPOSSIBLE, neginf=1), NO_TAIL + 1, IMPOSSIBLE)
    return np.where(np.isneginf(positions.tail_logprob_P), NO_TAIL, units_P).astype(np.uint16)


@cache
def _kept_and_tail_of_words() -> tuple[Float64, Float64]:
    """For all 65,536 words: computing them for each position was a tenth of the decoding."""
    odds = (np.arange(65536) - 32768) / LOGPROB_UNIT
    kept, tail = -np.logaddexp(0.0, odds), -np.logaddexp(0.0, -odds)
    kept[NO_TAIL], tail[NO_TAIL] = 0.0, -np.inf
    return kept, tail


def kept_and_tail(odds_P: Words) -> tuple[Float64, Float64]:
    """Log of the kept mass and of the tail; together they are 1."""
    kept, tail = _kept_and_tail_of_words()
    return np.take(kept, odds_P), np.take(tail, odds_P)


def tempered_words(lse_PM: Float32) -> npt.NDArray[np.uint16]:
    """A normaliser in units above −64."""
    return np.clip(np.rint(lse_PM.astype(np.float64) * TEMPERED_UNIT) + 32768, 0, 65535).astype(np.uint16)


def tempered_of(words: Words) -> Float32:
    """The inverse."""
    values: Float32 = (words.astype(np.float32) - 32768) / np.float32(TEMPERED_UNIT)
    return values
