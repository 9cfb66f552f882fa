"""What can be wrong with a row whose bytes decode: it is not the row, or a position of it is no distribution."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tasks.logits.codec import DocumentCodec
from tasks.logits.positions import MASS_TOLERANCE, Float64, Int32, Positions, mass
from tasks.logits.reader import LogitRow
from tasks.logits.rows import row_id_of
from tasks.logits.schema import AdaptiveSupport, LogitFormat, SampledSupport
from tasks.logits.words import LOGPROB_UNIT, TEMPERED_UNIT

LOST_MASS = 0.0101
"""Entries and tail of a position add up to at least 1 minus this and what rounding may take: 1 within 1e-6 in a dump,
within 0.01 in an import, whose source may have added up probabilities in bfloat16."""

Flags = npt.NDArray[np.bool_]


def row_faults(row: LogitRow, num_targets: int, form: LogitFormat, codec: DocumentCodec) -> list[str]:
    """Half a sentence for each kind of fault, with the first position that has it."""
    faults = []
    if row_id_of(row.input_ids) != row.row_id:
        faults.append(f"has other tokens than its id {row.row_id} says")
    if row.input_ids.max() >= form.vocab_size or row.input_ids.min() < 0:
        faults.append("has a token outside the vocabulary")
    if row.loss_mask.max() > 1 or row.loss_mask[0] or int(row.loss_mask.sum()) != num_targets:
        faults.append("has a loss mask that does not fit its number of targets")
    if len(row.input_ids) > 1:
        positions = Positions(
            row.topk_ids_PK,
            row.topk_logprobs_PK,
            row.tail_logprob_P,
            row.gold_logprob_P,
            row.tempered_lse_PM,
            row.tempered_tail_PM,
            row.counts_PK,
        )
        for fault, at_P in position_faults(positions, row.input_ids[1:], form, codec).items():
            if at_P.any():
                faults.append(f"{fault} at position {int(np.argmax(at_P))}")
    return faults


def position_faults(positions: Positions, gold_P: Int32, form: LogitFormat, codec: DocumentCodec) -> dict[str, Flags]:
    """Each fault that a position can have, and where it is."""
    ids_PK, values_PK = positions.topk_ids_PK, positions.topk_logprobs_PK
    kept_PK = ids_PK >= 0
    sorted_PK = np.sort(ids_PK, axis=1)
    repeated_PK = (sorted_PK[:, 1:] == sorted_PK[:, :-1]) & (sorted_PK[:, 1:] >= 0)
    with np.errstate(invalid="ignore", over="ignore"):
        probabilities_PK = np.exp(values_PK.astype(np.float64))
        kept_mass_P = probabilities_PK.sum(1)
        bound_PK = codec.error_bound(values_PK, np.maximum(kept_mass_P, 1e-9)[:, None])
        bound_PK[~kept_PK] = 0.0
        rounding_P = (probabilities_PK * np.expm1(np.minimum(bound_PK, 10.0))).sum(1)
        total_P = mass(values_PK, positions.tail_logprob_P)
        return {
            "holds a number that is not one": np.isnan(values_PK).any(1)
            | np.isnan(positions.tail_logprob_P)
            | np.isnan(positions.gold_logprob_P),
            "has an id outside the vocabulary": (ids_PK >= form.vocab_size).any(1),
            "has an id twice": repeated_PK.any(1),
            "has an id without probability or a probability without id": (kept_PK == np.isneginf(values_PK)).any(1),
            "is not in descending order": (values_PK[:, 1:] > values_PK[:, :-1]).any(1),
            "has more mass than one": total_P > 1 + MASS_TOLERANCE,
            "has less mass than one": total_P < 1 - LOST_MASS - rounding_P,
            **_gold_faults(positions, gold_P, form, codec, bound_PK),
            **_support_faults(positions, form, bound_PK),
            **_tempered_faults(positions, form, bound_PK),
        }


def _gold_faults(
    positions: Positions, gold_P: Int32, form: LogitFormat, codec: DocumentCodec, bound_PK: Float64
) -> dict[str, Flags]:
    ids_PK, values_PK, gold_logprob_P = positions.topk_ids_PK, positions.topk_logprobs_PK, positions.gold_logprob_P
    is_gold_PK = ids_PK == gold_P[:, None]
    difference_PK = np.abs(values_PK - gold_logprob_P[:, None])
    # Below the grid's end a decoded value stands for anything less probable.
    differs_PK = is_gold_PK & ~(difference_PK <= bound_PK + codec.gold_error)
    left_out_P = ~is_gold_PK.any(1)
    faults = {
        "has a kept following token with another probability than is stored of it": differs_PK.any(1),
        "has a following token outside the kept ones with more probability than these leave": left_out_P
        & (gold_logprob_P > positions.tail_logprob_P + 0.01),
    }
    if form.teacher_digest and not isinstance(form.support, SampledSupport):
        # Of an import, which names no weights, nobody knows how its entries were chosen.
        kept_P = (ids_PK >= 0).sum(1)
        last_P1 = np.maximum(kept_P - 1, 0)[:, None]
        least_P = np.take_along_axis(values_PK + bound_PK, last_P1, 1)[:, 0]
        faults["has a following token outside the kept ones that is likelier than the last of these"] = (
            left_out_P & (kept_P > 0) & (gold_logprob_P > least_P + codec.gold_error)
        )
    return faults


def _support_faults(positions: Positions, form: LogitFormat, bound_PK: Float64) -> dict[str, Flags]:
    support, kept_PK = form.support, positions.topk_ids_PK >= 0
    if isinstance(support, SampledSupport):
        counts_PK = positions.counts_PK.astype(np.int64)
        return {
            f"has other than {support.num_draws} draws": counts_PK.sum(1) != support.num_draws,
            "has an entry that was never drawn": ((counts_PK == 0) & kept_PK).any(1),
        }
    if form.teacher_digest and isinstance(support, AdaptiveSupport) and support.min_probability is not None:
        least = np.log(support.min_probability) - 1e-3
        below_PK = kept_PK & (positions.topk_logprobs_PK < least - bound_PK)
        return {
            f"keeps an entry below probability {support.min_probability:g}": below_PK[:, support.min_kept :].any(1),
        }
    return {}


def _tempered_faults(positions: Positions, form: LogitFormat, bound_PK: Float64) -> dict[str, Flags]:
    faults = {}
    for place, temperature in enumerate(form.temperatures):
        lse_P = positions.tempered_lse_PM[:, place].astype(np.float64)
        exponents_PK = positions.topk_logprobs_PK / temperature - lse_P[:, None]
        kept_PK = np.exp(np.minimum(exponents_PK, 20.0))
        tail_P = np.exp(positions.tempered_tail_PM[:, place].astype(np.float64))
        total_P = kept_PK.sum(1) + tail_P
        rounding_P = (kept_PK * np.expm1(np.minimum(bound_PK / temperature, 10.0))).sum(1)
        unit_P = kept_PK.sum(1) / TEMPERED_UNIT + tail_P / LOGPROB_UNIT
        faults[f"has a normaliser and a tail at temperature {temperature:g} that do not fit its entries"] = ~(
            np.abs(total_P - 1) <= LOST_MASS + rounding_P + unit_P
        )
    return faults
