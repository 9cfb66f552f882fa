"""What a shard's receipt says of its numbers, such that a store's can be computed from receipts alone.

A resumed dump never reads the shards that it did not make: sums, minima and a histogram add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tasks.logits.positions import Positions
from tasks.logits.rows import Row
from tasks.logits.schema import Split

NUM_BINS = 1000
"""Of captured mass: quantiles to 0.001."""


class ShardStatistics:
    """Sums over one shard's positions, row by row."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._positions = self._targets = self._entries = 0
        self._captured = self._tail = self._gold_nll = 0.0
        self._captured_min = 1.0
        self._histogram = np.zeros(NUM_BINS, np.int64)
        self._batch_tokens = self._padded_tokens = 0

    def add(self, index: int, positions: Positions) -> None:
        """The positions of the shard's row `index`."""
        captured_P = np.exp(positions.topk_logprobs_PK.astype(np.float64)).sum(1).clip(0, 1)
        target_P = self._rows[index].loss_mask[1:].astype(bool)
        bins_P = np.minimum((captured_P * NUM_BINS).astype(np.int64), NUM_BINS - 1)
        self._positions += len(positions)
        self._targets += int(target_P.sum())
        self._entries += int((positions.topk_ids_PK >= 0).sum())
        self._captured += float(captured_P.sum())
        self._captured_min = min(self._captured_min, float(captured_P.min(initial=1.0)))
        self._histogram += np.bincount(bins_P, minlength=NUM_BINS)
        self._tail += float(np.exp(positions.tail_logprob_P.astype(np.float64)).sum())
        self._gold_nll -= float(positions.gold_logprob_P[target_P].astype(np.float64).sum())

    def add_batch(self, num_tokens: int, num_padded: int) -> None:
        """A forward pass over `num_tokens` tokens that took `num_padded` with padding."""
        self._batch_tokens += num_tokens
        self._padded_tokens += num_padded

    def record(self, gold_error: float) -> dict[str, Any]:
        """The receipt's metrics."""
        return {
            "rows": len(self._rows),
            "tokens": sum(len(row.input_ids) for row in self._rows),
            "positions": self._positions,
            "targets": self._targets,
            "entries": self._entries,
            "captured_sum": self._captured,
            "captured_min": self._captured_min,
            "captured_histogram": self._histogram.tolist(),
            "tail_sum": self._tail,
            "gold_nll_sum": self._gold_nll,
            "gold_error": gold_error,
            "batch_tokens": self._batch_tokens,
            "padded_tokens": self._padded_tokens,
        }


def store_metrics(shards: Mapping[Split, Iterable[Mapping[str, Any]]], num_bytes: int) -> dict[str, Any]:
    """The artifact's metrics from its shards' statistics, by split. `num_bytes` is the size of shards and prior."""
    by_split = {split: list(values) for split, values in shards.items()}
    every = [values for split in by_split.values() for values in split]

    def total(name: str, of: Sequence[Mapping[str, Any]] = every) -> float:
        return float(sum(values[name] for values in of))

    positions = total("positions")
    metrics: dict[str, Any] = {name: int(total(name)) for name in ("rows", "tokens", "positions", "targets")}
    metrics["bytes_per_token"] = num_bytes / total("tokens")
    metrics["gold_error"] = max(values["gold_error"] for values in every)
    if positions:
        histogram = np.sum([values["captured_histogram"] for values in every], axis=0)
        metrics["captured_mass"] = total("captured_sum") / positions
        # The lower edge of the bin in which a tenth of the positions is reached.
        metrics["captured_mass_p10"] = int(np.searchsorted(np.cumsum(histogram), 0.1 * positions)) / NUM_BINS
        metrics["captured_mass_min"] = min(values["captured_min"] for values in every)
        metrics["tail_mass"] = total("tail_sum") / positions
        metrics["entries_per_position"] = total("entries") / positions
        metrics["padding"] = 1 - total("batch_tokens") / total("padded_tokens")
    for split, values in by_split.items():
        if targets := total("targets", values):
            metrics[f"gold_nll_{split}"] = total("gold_nll_sum", values) / targets
    return metrics
