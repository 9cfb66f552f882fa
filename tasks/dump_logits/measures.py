"""What a dump's receipts say beside the statistics of their positions: the check of the gold tokens, and padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks.logits.positions import Positions
from tasks.logits.rows import Row
from tasks.logits.statistics import Receipts, ShardStatistics, store_metrics, total


class DumpStatistics:
    """Of one shard, row by row."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._statistics = ShardStatistics()
        self._batch_tokens = self._padded_tokens = 0

    def add(self, index: int, positions: Positions) -> None:
        """The positions of the shard's row `index`."""
        self._statistics.add(positions, self._rows[index].loss_mask)

    def add_batch(self, num_tokens: int, num_padded: int) -> None:
        """A forward pass over `num_tokens` tokens that took `num_padded` with padding."""
        self._batch_tokens += num_tokens
        self._padded_tokens += num_padded

    def record(self, gold_errors: np.ndarray) -> dict[str, Any]:
        """The receipt's metrics; `gold_errors` in nats, of the sampled positions."""
        return {
            **self._statistics.record(),
            "gold_error": float(gold_errors.mean()) if len(gold_errors) else 0.0,
            "gold_error_max": float(gold_errors.max(initial=0.0)),
            "batch_tokens": self._batch_tokens,
            "padded_tokens": self._padded_tokens,
        }


def dump_metrics(shards: Receipts, num_bytes: int) -> dict[str, Any]:
    """The artifact's metrics from its shards' records. `num_bytes` is the size of shards and prior."""
    shards = {split: list(values) for split, values in shards.items()}
    metrics = store_metrics(shards, num_bytes)
    for name in ("gold_error", "gold_error_max"):
        metrics[name] = max(values[name] for split in shards.values() for values in split)
    if padded := total(shards, "padded_tokens"):
        metrics["padding"] = 1 - total(shards, "batch_tokens") / padded
    return metrics
