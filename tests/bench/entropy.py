"""What an ideal coder that knows no context would need for the same ids and values.

Ids: their order-0 entropy over the measured positions themselves (a prior from other text codes them worse). Values:
steps on a grid that is finer at the head, entropy of the step given the rank, the grid's fineness chosen such that it
adds the same KL as the codec did. Entries that fall on equal values may come in any order, which frees log2(n!) bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.logits.positions import Positions

HEAD_STEP = 0.01
"""Of the grid at scale 1: 2 · √p in steps of this size above the probability where a step in log p is TAIL_STEP."""
TAIL_STEP = 0.4
"""Nats."""
LOG_2 = np.log(2.0)


@dataclass(frozen=True)
class Bound:
    """Bits of an entry, and bytes of a position."""

    ids: float
    steps: float
    ties: float
    num_kept: int
    added_kl: float

    @property
    def bytes_per_position(self) -> float:
        return self.num_kept * (self.ids + self.steps - self.ties) / 8

    @property
    def said(self) -> str:
        """For conditions."""
        return (
            f"an entry: ids {self.ids:.2f} bits of order 0, value steps {self.steps:.2f}, ties −{self.ties:.2f}; "
            f"reference grid at added KL {self.added_kl:.2g}; entries only: the size has tokens, gold and tail too"
        )


def entropy_bound(positions: Positions, added_kl: float) -> Bound:
    """For positions that keep all their K entries. `added_kl` in nats, above 0."""
    values_PK = positions.topk_logprobs_PK.astype(np.float64)
    tail_P = positions.tail_logprob_P.astype(np.float64)
    low, high = 0.02, 50.0
    for _ in range(20):
        scale = float(np.sqrt(low * high))
        low, high = (scale, high) if _grid(values_PK, tail_P, scale)[1] < added_kl else (low, scale)
    cells_PK, error = _grid(values_PK, tail_P, low)
    steps_PK = np.diff(cells_PK, axis=1, prepend=0)
    num_kept = values_PK.shape[1]
    return Bound(
        ids=_entropy(positions.topk_ids_PK.ravel()),
        steps=float(np.mean([_entropy(steps_PK[:, rank]) for rank in range(num_kept)])),
        ties=_tie_bits(steps_PK) / num_kept,
        num_kept=num_kept,
        added_kl=error,
    )


def _grid(
    values_PK: npt.NDArray[np.float64], tail_P: npt.NDArray[np.float64], scale: float
) -> tuple[npt.NDArray[np.int64], float]:
    """Cells on the grid of this scale, and the mean KL that rounding to them adds, with the tail stored exactly."""
    head, tail_step = HEAD_STEP * scale, TAIL_STEP * scale
    # 2 (1 − √p) / head has the slope √p / head by log p; from `turn` down the slope is 1 / tail_step.
    turn = min(1.0, (head / tail_step) ** 2)
    at_turn = 2 * (1 - np.sqrt(turn)) / head
    root_PK = np.exp(values_PK / 2)
    place_PK = np.where(root_PK**2 >= turn, 2 * (1 - root_PK) / head, at_turn + (np.log(turn) - values_PK) / tail_step)
    cells_PK = np.rint(place_PK)
    inner_PK = np.minimum(cells_PK, at_turn)
    decoded_PK = np.where(
        cells_PK <= at_turn,
        2 * np.log(np.maximum(1 - head * inner_PK / 2, 1e-9)),
        np.log(turn) - (cells_PK - at_turn) * tail_step,
    )
    kept_P = np.exp(decoded_PK).sum(1)
    shift_P = np.log(-np.expm1(np.minimum(tail_P, -1e-9)) / kept_P)
    mass_PK = np.exp(values_PK)
    error_P = (mass_PK * (values_PK - decoded_PK - shift_P[:, None])).sum(1)
    return cells_PK.astype(np.int64), float(error_P.mean())


def _entropy(symbols: npt.NDArray[np.integer]) -> float:
    counts = np.unique(symbols, return_counts=True)[1]
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())


def _tie_bits(steps_PK: npt.NDArray[np.int64]) -> float:
    """Mean over positions of Σ log2(n!) over its runs of n equal values."""
    num_positions, width = steps_PK.shape
    group_PK = np.cumsum(steps_PK > 0, axis=1) + (width + 1) * np.arange(num_positions)[:, None]
    runs = np.unique(group_PK, return_counts=True)[1]
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, width + 1)))))
    return float(log_factorial[runs].sum() / LOG_2 / num_positions)
