"""From what a file holds of a document to positions in this project's terms, or one sentence why that cannot be.

Position p predicts token p + 1; entries descend by log-probability, equal ones ascend by id; the mass that is missing
to 1 is the tail; and entries that sum to more than 1, or with a given tail to less, as rounded ones can, are scaled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from tasks.artifacts.errors import BadInputError
from tasks.import_logits.raw import RawDocument
from tasks.import_logits.stage import DistillKitFormat, PlainFormat
from tasks.logits.codec import DocumentCodec
from tasks.logits.positions import Float32, Float64, Positions
from tasks.logits.schema import Support

MAX_SUM = 2.0
"""Log-probabilities sum to at most 1, rounded to bfloat16 to 1.01, through a badly fitted curve to a little more;
centred logits sum to thousands."""
ROUNDING = 1e-5
"""What float32 entries and tail sum to beside 1 is no fault of the source."""
MAX_TAIL_ERROR = 0.05
"""How far from 1 entries and a given tail may be together: 0.01 is what bfloat16 does."""


@dataclass(frozen=True)
class AlignedDocument:
    """T tokens and their P = T − 1 positions."""

    where: str
    input_ids_T: npt.NDArray[np.int32]
    loss_mask_T: npt.NDArray[np.uint8]
    positions: Positions
    excess_P: Float64
    """By how much a position's entries and tail summed to more than 1."""
    gold_known_P: npt.NDArray[np.bool_]
    """Whether the source says the following token's probability. Elsewhere the tail, spread evenly over the tokens that
    are not kept but at most the last kept one's probability, stands for it."""
    gold_entry_P: Float64
    """The log-probability of the following token among the entries; NaN where it is not kept."""
    gold_given: bool
    """Whether the source has a column of its own for it."""

    def with_one_gold(self, codec: DocumentCodec) -> AlignedDocument:
        """With the entry's value where a gold log-probability differs from it by more than the codec may.

        An exported store's entries are rounded, its gold values nearly not: kept exactly, the two would be two truths.
        """
        gold_P = self.positions.gold_logprob_P
        kept_P = np.exp(self.positions.topk_logprobs_PK.astype(np.float64)).sum(1)
        with np.errstate(invalid="ignore"):
            bound_P = codec.error_bound(gold_P, np.maximum(kept_P, 1e-9)) / 2
            differs_P = ~(np.abs(gold_P - self.gold_entry_P) <= bound_P) & ~np.isnan(self.gold_entry_P)
        one_P = np.where(differs_P, self.gold_entry_P, gold_P).astype(np.float32)
        return replace(self, positions=replace(self.positions, gold_logprob_P=one_P))

    def laid_out(self, support: Support, num_temperatures: int) -> AlignedDocument:
        """With room for the entries of a support.

        Raises:
            BadInputError: a position has more, or the temperatures or counts of a store are not there.
        """
        found = self.positions
        width, counted = support.width, support.kind == "sampled"
        if (most := int((found.topk_ids_PK >= 0).sum(1).max(initial=0))) > width:
            self._refuse(f"keeps {most} entries at a position, and recipe.support of import_logits holds {width}")
        if counted and not found.counts_PK.shape[1] and len(found):
            self._refuse("has no column counts, without which sampled support means nothing; set another one")
        if counted and (found.counts_PK.sum(1, dtype=np.int64) != width).any():
            self._refuse(f"has a position with other than the {width} draws that the support says; set num_draws")
        if found.tempered_lse_PM.shape[1] != num_temperatures and len(found):
            self._refuse(f"has other temperatures than the {num_temperatures} that its file names; export it again")
        room = Positions.empty(len(found), width, num_temperatures, counted=counted)
        kept = min(width, found.topk_ids_PK.shape[1])
        for target, source, fill in (
            (room.topk_ids_PK, found.topk_ids_PK, -1),
            (room.topk_logprobs_PK, found.topk_logprobs_PK, -np.inf),
            (room.counts_PK, found.counts_PK if counted else room.counts_PK, 0),
        ):
            if target.shape[1]:
                target[:, :kept] = source[:, :kept]
                target[:, kept:] = fill
        same = ("tail_logprob_P", "gold_logprob_P", *(("tempered_lse_PM", "tempered_tail_PM") if len(found) else ()))
        return replace(self, positions=replace(room, **{name: getattr(found, name) for name in same}))

    def _refuse(self, fault: str) -> NoReturn:
        raise BadInputError(f"{self.where} {fault}")


def align(raw: RawDocument, form: PlainFormat | DistillKitFormat, vocab_size: int) -> AlignedDocument:
    """Brings a document into this project's terms.

    Raises:
        BadInputError: what it holds is no document with its distributions over `vocab_size` tokens.
    """
    tokens_T = _tokens(raw, vocab_size)
    mask_T = loss_mask(raw)
    here = _cut(raw, form, len(tokens_T))
    ids_PK, values_PK, counts_PK = _entries(here, form, vocab_size)
    kept_PK = ids_PK >= 0
    kept_P = np.exp(values_PK.astype(np.float64)).sum(1)
    if (at := np.flatnonzero(~kept_PK.any(1) & (mask_T[1:] > 0))).size:
        _refuse(raw, f"has no entry at position {at[0]}, whose token is a target")
    if (at := np.flatnonzero(kept_P > MAX_SUM)).size:
        _refuse(
            raw,
            f"has values at position {at[0]} that sum to {kept_P[at[0]]:.4g} as probabilities; if they are logits, set "
            f"recipe.format.values of import_logits to logits",
        )
    tail_P = _tail(here, kept_P)
    total_P = kept_P + np.exp(tail_P)
    if (at := np.flatnonzero(np.abs(total_P - 1) > MAX_TAIL_ERROR)).size and here.tail_R is not None:
        _refuse(raw, f"has entries and a tail at position {at[0]} that are {total_P[at[0]]:.4g} together, and not 1")
    scale_P = np.where(np.abs(total_P - 1) > ROUNDING, np.log(total_P), 0.0)
    values_PK = (values_PK.astype(np.float64) - scale_P[:, None]).astype(np.float32)
    tail_P -= scale_P
    gold_P, known_P, entry_P = _gold(here, tokens_T[1:], ids_PK, values_PK, tail_P, vocab_size)
    no_temperatures = np.empty((len(ids_PK), 0), np.float32)
    positions = Positions(
        ids_PK.astype(np.int32),
        values_PK,
        tail_P.astype(np.float32),
        gold_P.astype(np.float32),
        no_temperatures if here.tempered_lse_RM is None else here.tempered_lse_RM,
        no_temperatures if here.tempered_tail_RM is None else here.tempered_tail_RM,
        np.empty((len(ids_PK), 0), np.uint16) if counts_PK is None else counts_PK.astype(np.uint16),
    )
    excess_P = np.maximum(total_P - 1, 0.0)
    return AlignedDocument(
        raw.where, tokens_T.astype(np.int32), mask_T, positions, excess_P, known_P, entry_P, here.gold_R is not None
    )


def _refuse(raw: RawDocument, fault: str) -> NoReturn:
    raise BadInputError(f"{raw.where} {fault}")


def _tokens(raw: RawDocument, vocab_size: int) -> npt.NDArray[np.int64]:
    tokens_T = raw.input_ids_T
    if not len(tokens_T):
        _refuse(raw, "has no tokens; leave it out")
    if tokens_T.min() < 0 or tokens_T.max() >= vocab_size:
        bad = tokens_T[(tokens_T < 0) | (tokens_T >= vocab_size)][0]
        _refuse(
            raw, f"has the token {bad}, and the tokenizer has {vocab_size}; give the one that the set was made with"
        )
    return tokens_T


def loss_mask(raw: RawDocument) -> npt.NDArray[np.uint8]:
    """The document's mask (T,). The first token is predicted by nothing, whatever the file says.

    Raises:
        BadInputError: the file's mask is not a 0 or 1 for each token.
    """
    num_tokens = len(raw.input_ids_T)
    mask_T = np.ones(num_tokens, np.uint8) if raw.loss_mask_T is None else raw.loss_mask_T.astype(np.uint8)
    if len(mask_T) != num_tokens or mask_T.max(initial=0) > 1:
        _refuse(raw, f"has {num_tokens} tokens and a loss mask of {len(mask_T)} values; it must have a 0 or 1 for each")
    mask_T = mask_T.copy()
    mask_T[0] = 0
    return mask_T


def _cut(raw: RawDocument, form: PlainFormat | DistillKitFormat, num_tokens: int) -> RawDocument:
    """The T − 1 positions that predict a token of the document."""
    found = len(raw.ids_RK)
    expected = num_tokens - (form.extra_position == "none")
    # One token has no position, and some writers leave the list of a document without any out.
    if found != expected and not (num_tokens == 1 and found == 0):
        _refuse(
            raw,
            f"has {num_tokens} tokens and {found} positions, and recipe.format.extra_position of import_logits, "
            f"{form.extra_position}, means {expected}; set it to none for T − 1 positions, and for T to first where "
            f"position i holds p(x_i | x_<i), or to last where it predicts token i + 1",
        )
    rows = slice(1, None) if form.extra_position == "first" else slice(0, num_tokens - 1)
    names = ("ids_RK", "values_RK", "tail_R", "gold_R", "counts_RK", "tempered_lse_RM", "tempered_tail_RM")
    arrays: dict[str, Any] = {name: getattr(raw, name) for name in names}
    for name, array in arrays.items():
        if array is not None and len(array) != found:
            _refuse(raw, f"has {found} positions and {len(array)} values in {name.rsplit('_', 1)[0]}; write it again")
    cut: dict[str, Any] = {name: None if array is None else array[rows] for name, array in arrays.items()}
    return RawDocument(raw.where, raw.input_ids_T, loss_mask_T=raw.loss_mask_T, **cut)


def _entries(
    here: RawDocument, form: PlainFormat | DistillKitFormat, vocab_size: int
) -> tuple[npt.NDArray[np.int64], Float32, npt.NDArray[np.int64] | None]:
    """Ids, log-probabilities and counts in order; -1, -inf and 0 behind each position's last entry."""
    ids_PK, values_PK, counts_PK = here.ids_RK, here.values_RK, here.counts_RK
    if (bad := np.isnan(values_PK) | np.isposinf(values_PK)).any():
        _refuse(here, f"holds something that is no number at position {int(bad.any(1).argmax())}; leave it out")
    empty_PK = np.isneginf(values_PK)
    if ((ids_PK < 0) & ~empty_PK).any():
        _refuse(here, f"has a probability without id at position {int(((ids_PK < 0) & ~empty_PK).any(1).argmax())}")
    ids_PK = np.where(empty_PK, -1, ids_PK)
    if ids_PK.max(initial=-1) >= vocab_size:
        _refuse(
            here,
            f"keeps the token {ids_PK.max()}, and the tokenizer has {vocab_size}; give the one that the set was made "
            f"with, or leave out what a teacher has beyond its tokenizer before it is stored",
        )
    if form.values == "logits":
        with np.errstate(invalid="ignore"):
            top_P1 = values_PK.max(1, keepdims=True, initial=-np.inf)
            shifted_PK = np.where(empty_PK, -np.inf, values_PK.astype(np.float64) - top_P1)
            values_PK = (shifted_PK - np.log(np.exp(shifted_PK).sum(1, keepdims=True))).astype(np.float32)
            values_PK[empty_PK] = -np.inf
    if not (values_PK[:, 1:] < values_PK[:, :-1]).all():
        order_PK = np.lexsort((ids_PK, -values_PK), axis=1)
        ids_PK, values_PK = np.take_along_axis(ids_PK, order_PK, 1), np.take_along_axis(values_PK, order_PK, 1)
        counts_PK = None if counts_PK is None else np.take_along_axis(counts_PK, order_PK, 1)
    sorted_PK = np.sort(ids_PK, axis=1)
    if (twice := (sorted_PK[:, 1:] == sorted_PK[:, :-1]) & (sorted_PK[:, 1:] >= 0)).any():
        _refuse(here, f"keeps a token twice at position {int(twice.any(1).argmax())}; the set is damaged")
    if counts_PK is not None and ((counts_PK > 0) != (ids_PK >= 0)).any():
        _refuse(here, "has an entry that was never drawn, or a draw without entry; the set is damaged")
    return ids_PK, values_PK, counts_PK


def _tail(here: RawDocument, kept_P: Float64) -> Float64:
    if here.tail_R is None:
        with np.errstate(divide="ignore"):
            return np.log(np.maximum(1 - kept_P, 0.0))
    tail_P = here.tail_R.astype(np.float64)
    if np.isnan(tail_P).any() or (tail_P > 0).any():
        _refuse(here, "has a tail_logprob above 0, or one that is no number; write it again")
    return tail_P


def _gold(
    here: RawDocument,
    tokens_P: npt.NDArray[np.int64],
    ids_PK: npt.NDArray[np.int64],
    values_PK: Float32,
    tail_P: Float64,
    vocab_size: int,
) -> tuple[Float64, npt.NDArray[np.bool_], Float64]:
    """Log-probability of the following token, whether it is known, and what its entry says (NaN without one)."""
    is_gold_PK = ids_PK == tokens_P[:, None]
    kept_P = is_gold_PK.any(1)
    entry_P = np.where(is_gold_PK, values_PK, -np.inf).max(1, initial=-np.inf).astype(np.float64)
    outside_P = np.maximum(vocab_size - (ids_PK >= 0).sum(1), 1)
    # What is not kept is no likelier than the last that is.
    last_P = np.where(ids_PK >= 0, values_PK, np.inf).min(1, initial=np.inf)
    spread_P = np.where(kept_P, entry_P, np.minimum(tail_P - np.log(outside_P), last_P))
    entry_P[~kept_P] = np.nan
    if here.gold_R is None:
        return spread_P, kept_P, entry_P
    given_P = here.gold_R.astype(np.float64)
    if np.isnan(given_P).any():
        _refuse(here, "has a gold_logprob that is no number; write it again")
    return given_P, np.ones(len(tokens_P), bool), entry_P
