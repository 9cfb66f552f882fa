"""The supports that the bench compares, and what each keeps of the real distributions.

Computed from 160 stored entries and 50 stored draws by the definitions, not by the dump's code: a fault there would
otherwise be on both sides.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.logits.positions import Positions
from tests.bench.real_logits import NUM_DRAWS, NUM_ENTRIES, RealLogits

Settings = dict[str, Any]
"""recipe.support as a profile writes it."""

TOP_64: Settings = {"kind": "top_k", "num_kept": 64}
ADAPTIVE: Settings = {"kind": "adaptive", "min_probability": 1e-3, "max_kept": 128}
SAMPLED: Settings = {"kind": "sampled", "num_draws": 50, "seed": 0}

CURVE: dict[str, Settings] = {
    **{f"top{kept}": {"kind": "top_k", "num_kept": kept} for kept in (16, 32, 64, 128)},
    **{
        f"adaptive_{least}": {"kind": "adaptive", "min_probability": float(least), "max_kept": 128}
        for least in ("1e-2", "3e-3", "1e-3", "5e-4")
    },
    **{f"sampled{draws}": {"kind": "sampled", "num_draws": draws, "seed": 0} for draws in (10, 25, 50)},
}
"""From small to large within each kind."""


def positions_of(real: RealLogits, settings: Settings) -> Positions:
    """What a dump with these settings stores, without temperatures."""
    if settings["kind"] == "sampled":
        return _sampled(real, settings["num_draws"])
    if settings["kind"] == "adaptive":
        return _cut(real, _adaptive_lengths(real, settings), settings["max_kept"])
    kept = settings["num_kept"]
    return _cut(real, np.full(real.num_positions, kept), kept)


def _adaptive_lengths(real: RealLogits, settings: Settings) -> npt.NDArray[np.int64]:
    probability_PW = np.exp(real.topk_logprobs_PW.astype(np.float64))
    lengths_P = np.full(real.num_positions, settings["max_kept"])
    if (least := settings.get("min_probability")) is not None:
        lengths_P = np.minimum(lengths_P, (probability_PW >= least).sum(1))
    if (mass := settings.get("min_mass")) is not None:
        lengths_P = np.minimum(lengths_P, (np.cumsum(probability_PW, 1) < mass).sum(1) + 1)
    return np.maximum(lengths_P, settings.get("min_kept", 1))


def _cut(real: RealLogits, lengths_P: npt.NDArray[np.int64], width: int) -> Positions:
    assert width <= NUM_ENTRIES
    kept_PK = np.arange(width) < lengths_P[:, None]
    beyond_PW = np.arange(NUM_ENTRIES) >= lengths_P[:, None]
    rest_PW = np.where(beyond_PW, np.exp(real.topk_logprobs_PW.astype(np.float64)), 0)
    tail_P = np.log(rest_PW.sum(1) + np.exp(real.tail_logprob_P.astype(np.float64)))
    return _positions(
        real,
        np.where(kept_PK, real.topk_ids_PW[:, :width], np.int32(-1)),
        np.where(kept_PK, real.topk_logprobs_PW[:, :width], np.float32(-np.inf)),
        tail_P,
        np.empty((real.num_positions, 0), np.uint16),
    )


def _sampled(real: RealLogits, num_draws: int) -> Positions:
    assert num_draws <= NUM_DRAWS
    ids_PS, logprobs_PS = real.draw_ids_PS[:, :num_draws], real.draw_logprobs_PS[:, :num_draws]
    order_PS = np.lexsort((ids_PS, -logprobs_PS), axis=1)
    ids_PS = np.take_along_axis(ids_PS, order_PS, 1)
    logprobs_PS = np.take_along_axis(logprobs_PS, order_PS, 1)
    first_PS = np.ones(ids_PS.shape, bool)
    first_PS[:, 1:] = ids_PS[:, 1:] != ids_PS[:, :-1]
    rank_PS = np.cumsum(first_PS, 1) - 1
    row_PS = np.broadcast_to(np.arange(len(ids_PS))[:, None], ids_PS.shape)
    kept_ids_PK = np.full(ids_PS.shape, -1, np.int32)
    kept_ids_PK[row_PS, rank_PS] = ids_PS
    kept_PK = np.full(ids_PS.shape, -np.inf, np.float32)
    kept_PK[row_PS, rank_PS] = logprobs_PS
    counts_PK = np.zeros(ids_PS.shape, np.uint16)
    np.add.at(counts_PK, (row_PS, rank_PS), 1)
    rest_P = 1 - np.exp(kept_PK.astype(np.float64)).sum(1)
    # Where rounding leaves nothing, the smallest rest that float32 log-probabilities can tell from none.
    return _positions(real, kept_ids_PK, kept_PK, np.log(np.maximum(rest_P, 1e-7)), counts_PK)


def _positions(
    real: RealLogits,
    ids_PK: npt.NDArray[np.int32],
    logprobs_PK: npt.NDArray[np.float32],
    tail_P: npt.NDArray[np.float64],
    counts_PK: npt.NDArray[np.uint16],
) -> Positions:
    none_PM = np.empty((real.num_positions, 0), np.float32)
    return Positions(
        topk_ids_PK=ids_PK,
        topk_logprobs_PK=logprobs_PK,
        tail_logprob_P=tail_P.astype(np.float32),
        gold_logprob_P=real.gold_logprob_P,
        tempered_lse_PM=none_PM,
        tempered_tail_PM=none_PM,
        counts_PK=counts_PK,
    )
