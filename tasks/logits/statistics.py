"""What a shard's receipt says of its numbers, such that a store's can be computed from receipts alone.

Whoever resumes a store never reads the shards that it did not make: sums, minima and a histogram add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.logits.positions import Positions
from tasks.logits.schema import Split

NUM_BINS = 1000
"""Of captured mass: quantiles to 0.001."""

Receipts = Mapping[Split, Iterable[Mapping[str, Any]]]
"""The receipts' metrics of each split's shards."""


class ShardStatistics:
    """Sums over one shard's positions, document by document."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(("rows", "tokens", "positions", "targets", "entries", "gold_targets"), 0)
        self._sums = dict.fromkeys(("captured_sum", "tail_sum", "gold_nll_sum"), 0.0)
        self._captured_min = 1.0
        self._histogram = np.zeros(NUM_BINS, np.int64)

    def add(
        self,
        positions: Positions,
        loss_mask_T: npt.NDArray[np.uint8],
        gold_known_P: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """One document; `gold_known_P` leaves out positions whose gold log-probability is an estimate."""
        captured_P = np.exp(positions.topk_logprobs_PK.astype(np.float64)).sum(1).clip(0, 1)
        target_P = loss_mask_T[1:].astype(bool)
        known_P = target_P if gold_known_P is None else target_P & gold_known_P
        bins_P = np.minimum((captured_P * NUM_BINS).astype(np.int64), NUM_BINS - 1)
        self._histogram += np.bincount(bins_P, minlength=NUM_BINS)
        self._captured_min = min(self._captured_min, float(captured_P.min(initial=1.0)))
        for name, count in {
            "rows": 1,
            "tokens": len(loss_mask_T),
            "positions": len(positions),
            "targets": int(target_P.sum()),
            "entries": int((positions.topk_ids_PK >= 0).sum()),
            "gold_targets": int(known_P.sum()),
        }.items():
            self._counts[name] += count
        self._sums["captured_sum"] += float(captured_P.sum())
        self._sums["tail_sum"] += float(np.exp(positions.tail_logprob_P.astype(np.float64)).sum())
        self._sums["gold_nll_sum"] -= float(positions.gold_logprob_P[known_P].astype(np.float64).sum())

    def record(self) -> dict[str, Any]:
        """The receipt's metrics."""
        return {
            **self._counts,
            **self._sums,
            "captured_min": self._captured_min,
            "captured_histogram": self._histogram.tolist(),
        }


def total(shards: Receipts, name: str) -> float:
    """A sum over all shards."""
    return float(sum(values[name] for split in shards.values() for values in split))


def store_metrics(shards: Receipts, num_bytes: int) -> dict[str, Any]:
    """The artifact's metrics from its shards' records. `num_bytes` is the size of shards and prior."""
    shards = {split: list(values) for split, values in shards.items()}
    every = [values for split in shards.values() for values in split]
    metrics: dict[str, Any] = {name: int(total(shards, name)) for name in ("rows", "tokens", "positions", "targets")}
    metrics["bytes_per_token"] = num_bytes / total(shards, "tokens")
    if positions := metrics["positions"]:
        histogram = np.sum([values["captured_histogram"] for values in every], axis=0)
        metrics |= {
            "captured_mass": total(shards, "captured_sum") / positions,
            # The lower edge of the bin in which a tenth of the positions is reached.
            "captured_mass_p10": int(np.searchsorted(np.cumsum(histogram), 0.1 * positions)) / NUM_BINS,
            "captured_mass_min": min(values["captured_min"] for values in every),
            "tail_mass": total(shards, "tail_sum") / positions,
            "entries_per_position": total(shards, "entries") / positions,
        }
    for split, part in shards.items():
        if known := total({split: part}, "gold_targets"):
            metrics[f"gold_nll_{split}"] = total({split: part}, "gold_nll_sum") / known
    return metrics
