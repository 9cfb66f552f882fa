"""From a document's truncated distributions to the bytes that are stored, and back.

A document of T tokens with P = T − 1 positions becomes three rows of bytes, or more with float values:

    symbols   one byte an entry: the step down to it from the entry before (2 bits) and its place's high byte (6 bits)
    low       the place's low byte of each entry; then the low bytes of what there is one of a token or position
    side      the other bytes of these; the loss mask; counts; and what did not fit into a symbol
    value …   with float values, their bytes, the highest first

Rows, because a byte's statistics differ between them and each is compressed by itself. Entries lie rank by rank (all
positions' first entries, then all second ones): a loop over K ranks then decodes any number of positions with numpy.

A place is a token's number in the store's prior. Among entries with equal stored values the order carries nothing: they
are sorted by place, and all but the first of them hold the difference to the one before. That saves 1.5 bits an entry
(SmolLM2, K = 64), because on the warped grid most of the small ones are equal.

Whatever the values, what comes back is descending, has no more mass than 1 + MASS_TOLERANCE, and differs from what
went in by at most `error_bound`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.logits.grid import (
    ABSENT,
    LOGPROB_OF_LEVEL,
    PROBABILITY_OF_LEVEL,
    SQRT_STEPS,
    largest_rounding,
    nearest_levels,
)
from tasks.logits.positions import MASS_TOLERANCE, Float32, Float64, Int32, Positions, check, mass
from tasks.logits.prior import Prior
from tasks.logits.rank_order import RankOrder
from tasks.logits.schema import MAX_VOCAB_SIZE, LogitFormat, Support, Values
from tasks.logits.words import (
    LOGPROB_UNIT,
    Bytes,
    Cursor,
    Words,
    all_bytes,
    byte_of,
    kept_and_tail,
    logprob_words,
    logprobs_of,
    odds_words,
    take_pairs,
    take_words,
    tempered_of,
    tempered_words,
)

MAX_STEP, MAX_HIGH = 3, 63
"""The largest step and high byte in a symbol; they stand for "this or more", with the rest in the side row."""
SCALE_MARGIN = np.float32(2e-6)
"""Decoded positions are scaled to a mass of 1 minus this, so that float32 rounding cannot lift them above 1."""


@dataclass(frozen=True)
class Document:
    """What is stored of one row of T tokens."""

    input_ids_T: Int32
    loss_mask_T: Bytes
    positions: Positions


class DocumentCodec:
    """The rows of bytes of a format."""

    def __init__(self, form: LogitFormat, prior: Prior) -> None:
        if prior.vocab_size != form.vocab_size or prior.digest != form.prior_digest:
            raise ValueError(f"the prior of {prior.vocab_size} tokens is not the one that the store was written with")
        self._form = form
        self._prior = prior
        self._width = form.width
        self._num_temperatures = len(form.temperatures)
        self._ragged = form.support.kind != "top_k"
        self._counted = form.support.kind == "sampled"
        # A draw's probability only enters the loss's value, its count the gradient: a fourth of the levels will do.
        self._stride = 4 if self._counted else 1
        self._float: np.dtype[Any] | None = None if form.values == "warped" else np.dtype(form.values)
        small = form.vocab_size <= 65536
        self._place: np.dtype[Any] = np.dtype(np.uint16 if small else np.int32)
        self._token_bytes = 2 if small else 3

    @property
    def num_rows(self) -> int:
        """Rows of bytes that a document becomes."""
        return 3 + (0 if self._float is None else self._float.itemsize)

    # Writing

    def encode(self, input_ids_T: npt.ArrayLike, loss_mask_T: npt.ArrayLike, positions: Positions) -> list[Bytes]:
        """The document's rows, each as long as it needs.

        Raises:
            ValueError: a position is no distribution in the order described at `Positions`; the message has its index.
        """
        tokens_T, mask_T = np.asarray(input_ids_T, np.int64), np.asarray(loss_mask_T, np.uint8)
        if positions.topk_ids_PK.shape != (len(tokens_T) - 1, self._width):
            raise ValueError(
                f"{positions.topk_ids_PK.shape} entries for a document of {len(tokens_T)} tokens and a store of "
                f"{self._width} entries a position"
            )
        check(positions)
        present_PK = positions.topk_ids_PK >= 0
        values_PK: npt.NDArray[Any] | None = None
        if self._float is None:
            levels_PK = nearest_levels(positions.topk_logprobs_PK, self._stride)
            steps_PK = np.diff(-(-levels_PK.astype(np.int16) // self._stride), axis=1, prepend=0).astype(np.uint8)
            words: list[npt.NDArray[Any]] = [logprob_words(positions.gold_logprob_P), odds_words(positions)]
        else:
            values_PK, tail_P = _fit(positions.topk_logprobs_PK, positions.tail_logprob_P, self._float)
            steps_PK = np.ones(values_PK.shape, np.uint8)
            steps_PK[:, 1:] = values_PK[:, 1:] != values_PK[:, :-1]
            words = [positions.gold_logprob_P.view(np.uint32), tail_P.view(np.uint32)]
        codes_PK, draws_PK = self._codes(positions, steps_PK > 0, present_PK)
        words += [tempered_words(positions.tempered_lse_PM), logprob_words(positions.tempered_tail_PM)]

        counts_P = present_PK.sum(1)
        ranks = RankOrder(len(positions), self._width, counts_P if self._ragged else None)
        steps_E, codes_E = ranks.flatten(steps_PK), ranks.flatten(codes_PK)
        low, side = [byte_of(codes_E, 0)], []
        tokens = self._prior.place_of_id_V[tokens_T].astype(np.uint32)
        for word, size in zip([tokens, *words], [self._token_bytes, *(word.itemsize for word in words)], strict=True):
            low.append(byte_of(word, 0))
            side += [byte_of(word, place) for place in range(1, size)]
        if self._ragged:
            side += all_bytes(counts_P.astype(np.uint16))
        side.append(np.packbits(mask_T))
        if self._counted:
            side += all_bytes(ranks.flatten(draws_PK))
        high_E = codes_E >> 8
        side += all_bytes((high_E[high_E >= MAX_HIGH] - MAX_HIGH).astype(np.uint16))
        side.append((steps_E[steps_E >= MAX_STEP] - MAX_STEP).astype(np.uint8))
        symbols = np.minimum(steps_E, MAX_STEP) << 6 | np.minimum(high_E, MAX_HIGH).astype(np.uint8)
        rows = [symbols, np.concatenate(low), np.concatenate(side)]
        return rows if values_PK is None else [*rows, *reversed(all_bytes(ranks.flatten(values_PK)))]

    def _codes(
        self, positions: Positions, starts_PK: npt.NDArray[np.bool_], present_PK: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint16]]:
        """What is stored of each entry's place, and the counts in the same order."""
        places_PK = self._prior.place_of_id_V[np.where(present_PK, positions.topk_ids_PK, 0)].astype(np.int64)
        places_PK[~present_PK] = 0
        starts_PK = starts_PK.copy()
        starts_PK[:, 0] = True
        # Entries that are equal in value are one group; inside it by place. Absent ones are the last group, all 0.
        keys_PK = np.cumsum(starts_PK, axis=1, dtype=np.int64) << 20 | places_PK
        counts_PK = positions.counts_PK
        if self._counted:
            order_PK = np.argsort(keys_PK, axis=1, kind="stable")
            counts_PK = np.take_along_axis(counts_PK, order_PK, 1)
        keys_PK.sort(axis=1)
        places_PK = keys_PK & (MAX_VOCAB_SIZE - 1)
        codes_PK = places_PK.astype(np.int32)
        codes_PK[:, 1:] -= np.where(starts_PK[:, 1:], 0, places_PK[:, :-1]).astype(np.int32)
        return codes_PK, counts_PK

    # Reading

    def decode(self, rows_RL: npt.NDArray[np.uint8] | Sequence[Bytes], num_tokens: int) -> Document:
        """The inverse; rows may be longer than the document's bytes.

        Raises:
            ValueError: the bytes cannot be of such a document.
        """
        num_positions, width = num_tokens - 1, self._width
        low, side = Cursor(np.asarray(rows_RL[1])), Cursor(np.asarray(rows_RL[2]))
        counts_P = None
        if self._ragged:
            # The counts come after the words, whose sizes are known.
            ahead = (self._token_bytes - 1) * num_tokens + self._word_bytes() * num_positions
            counts_P = take_pairs(Cursor(np.asarray(rows_RL[2]), ahead), num_positions).astype(np.int64)
        ranks = RankOrder(num_positions, width, counts_P)
        entries = ranks.num_entries
        symbols_E, low_E = Cursor(np.asarray(rows_RL[0])).take(entries), low.take(entries)
        tokens_T = take_words(low, side, num_tokens, self._token_bytes)
        size = 2 if self._float is None else 4
        gold_P, tail_P = (take_words(low, side, num_positions, size) for _ in range(2))
        shape_PM = (num_positions, self._num_temperatures)
        lse_PM, tempered_tail_PM = (
            take_words(low, side, shape_PM[0] * shape_PM[1], 2).reshape(shape_PM) for _ in range(2)
        )
        if self._ragged:
            side.take(2 * num_positions)
        mask_T = np.unpackbits(side.take(-(-num_tokens // 8)))[:num_tokens]
        draws_E = take_pairs(side, entries) if self._counted else None
        step_KP, ids_PK = self._entries(symbols_E, low_E, side, ranks)

        if self._float is None:
            logprobs_PK, tail_logprob_P = self._scaled(step_KP, tail_P, ranks)
            gold_logprob_P = logprobs_of(gold_P)
        else:
            value_bytes = [Cursor(np.asarray(row)).take(entries) for row in rows_RL[3:][::-1]]
            logprobs_KP = np.full((width, num_positions), -np.inf, np.float32)
            ranks.spread(np.stack(value_bytes, axis=1).view(self._float)[:, 0], logprobs_KP)
            logprobs_PK = ranks.restore(logprobs_KP)
            tail_logprob_P, gold_logprob_P = tail_P.view(np.float32), gold_P.view(np.float32)
        # Entries descend: where the last one is there, all are.
        if self._ragged or np.isneginf(logprobs_PK[:, -1]).any():
            ids_PK[np.isneginf(logprobs_PK)] = -1
        draws_KP = np.zeros((width if self._counted else 0, num_positions), np.uint16)
        if draws_E is not None:
            ranks.spread(draws_E, draws_KP)
        return Document(
            np.take(self._prior.id_of_place_V, tokens_T),
            mask_T,
            Positions(
                ids_PK,
                logprobs_PK,
                tail_logprob_P,
                gold_logprob_P,
                tempered_of(lse_PM),
                logprobs_of(tempered_tail_PM),
                ranks.restore(draws_KP),
            ),
        )

    def _entries(self, symbols_E: Bytes, low_E: Bytes, side: Cursor, ranks: RankOrder) -> tuple[Bytes, Int32]:
        """Steps, rank by rank, and ids."""
        num_positions, width = ranks.num_positions, self._width
        # Where P is a multiple of 4096 columns collide in the cache: transposing took 4 × as long without the padding.
        step_KP = np.zeros((width, num_positions + 16), np.uint8)[:, :num_positions]
        code_KP = np.zeros((width, num_positions + 16), self._place)[:, :num_positions]
        step_E, code_E = symbols_E >> 6, (symbols_E & MAX_HIGH).astype(self._place)
        far = np.flatnonzero(code_E == MAX_HIGH)
        code_E <<= 8
        code_E |= low_E
        code_E[far] += (take_pairs(side, len(far)).astype(np.int64) << 8).astype(self._place)
        long = np.flatnonzero(step_E == MAX_STEP)
        step_E[long] += side.take(len(long))
        ranks.spread(step_E, step_KP)
        ranks.spread(code_E, code_KP)
        equal_KP = (step_KP == 0).astype(self._place)
        before_P = np.empty(num_positions, self._place)
        # Arguments by position and rows sliced beforehand: a third of the time goes into calls where P is 1000.
        for above, equal, code in zip(
            ranks.rows(code_KP, above=True),
            ranks.rows(equal_KP),
            ranks.rows(code_KP),
            strict=True,
        ):
            before = before_P[: len(above)]
            np.multiply(above, equal, before)
            np.add(code, before, code)
        places_PK = ranks.restore(code_KP)
        if places_PK.size and places_PK.max() >= self._prior.vocab_size:
            raise ValueError(f"an entry has the place {places_PK.max()} in a vocabulary of {self._prior.vocab_size}")
        return step_KP, np.take(self._prior.id_of_place_V, places_PK)

    def _scaled(self, step_KP: Bytes, odds_P: Words, ranks: RankOrder) -> tuple[Float32, Float32]:
        """Log-probabilities and tail from steps of the grid, which are overwritten; the mass adds up to 1."""
        if self._stride > 1:
            step_KP *= np.uint8(self._stride)
        for above, step in zip(ranks.rows(step_KP, above=True), ranks.rows(step_KP), strict=True):
            np.add(above, step, step)
        if self._ragged:
            for row, count in zip(step_KP, ranks.sizes, strict=True):
                row[count:] = ABSENT
        levels_PK = ranks.restore(step_KP)
        found_P = ranks.restore(np.take(PROBABILITY_OF_LEVEL, step_KP).sum(0)[None])[:, 0]
        kept_P, tail_P = kept_and_tail(odds_P)
        with np.errstate(divide="ignore"):
            scale_P = np.where(found_P > 0, kept_P - np.log(found_P), 0.0).astype(np.float32) - SCALE_MARGIN
        logprobs_PK = np.take(LOGPROB_OF_LEVEL, levels_PK)
        logprobs_PK += scale_P[:, None]
        return logprobs_PK, tail_P.astype(np.float32) - SCALE_MARGIN

    def _word_bytes(self) -> int:
        """Bytes of the side row that one position's words take."""
        return 2 * (1 if self._float is None else 3) + 2 * self._num_temperatures

    # Errors

    def error_bound(self, logprobs: Float32, kept_mass: float | Float64 = 1.0) -> Float64:
        """Largest |decoded − true|, in nats, at each finite log-probability of a kept entry.

        warped: half a step of the grid, and what scaling the position to its mass adds: Σ p_i δ_i / Σ p_i, which by
        Cauchy-Schwarz is at most √K / S where the kept mass is 1, and half a unit of the odds. Where a position keeps
        little mass √(K / mass) takes the place of √K; `kept_mass` is the least. float16 and float32: one unit in the
        last place (a value is rounded to the nearest or, where its position would exceed mass 1, down), and 2e-6.
        """
        if self._float is None:
            scaling = self._stride * np.sqrt(self._width / kept_mass) / SQRT_STEPS
            return largest_rounding(logprobs, self._stride) + scaling + 0.5 / LOGPROB_UNIT + 1e-5
        relative, absolute = (2.0**-10, 2.0**-24) if self._float == np.float16 else (2.0**-23, 0.0)
        return np.abs(logprobs.astype(np.float64)) * relative + absolute + 2e-6

    @property
    def gold_error(self) -> float:
        """Largest error of a gold log-probability above −255 nats."""
        return 0.5 / LOGPROB_UNIT + 1e-6 if self._float is None else 1e-6


def max_error_nats(values: Values, support: Support) -> float:
    """Largest error of an entry above p = 4e-14 by its rounding alone."""
    if values == "warped":
        probe = np.linspace(-30.8, 0, 100_000, dtype=np.float32)
        return round(float(largest_rounding(probe, 4 if support.kind == "sampled" else 1).max()), 3)
    return 31 * 2.0**-10 if values == "float16" else 31 * 2.0**-23


def _fit(values_PK: Float32, tail_P: Float32, dtype: np.dtype[Any]) -> tuple[npt.NDArray[Any], Float32]:
    """Rounds to the nearest; positions that would then hold more mass than 1 are rounded down instead."""
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
