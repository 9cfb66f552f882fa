"""What a shard's receipt says of its numbers, such that a store's can be computed from receipts alone.

A resumed dump never reads the shards that it did not make: sums, minima and a histogram add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tasks.logits.codec import Positions
from tasks.logits.rows import Row
from tasks.logits.schema import Split

NUM_BINS = 1000
"""Of captured mass: quantiles to 0.001."""


def shard_statistics(rows: Sequence[Row], positions: Positions, gold_error: float) -> dict[str, Any]:
    """Sums over one shard's positions."""
    captured_P = np.exp(positions.topk_logprobs_PK.astype(np.float64)).sum(1).clip(0, 1)
    target_P = np.concatenate([row.loss_mask[1:] for row in rows]).astype(bool)
    bins_P = np.minimum((captured_P * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    return {
        "rows": len(rows),
        "tokens": sum(len(row.input_ids) for row in rows),
        "positions": len(positions),
        "targets": int(target_P.sum()),
        "captured_sum": float(captured_P.sum()),
        "captured_min": float(captured_P.min(initial=1.0)),
        "captured_histogram": np.bincount(bins_P, minlength=NUM_BINS).tolist(),
        "tail_sum": float(np.exp(positions.tail_logprob_P.astype(np.float64)).sum()),
        "gold_nll_sum": float(-positions.gold_logprob_P[target_P].astype(np.float64).sum()),
        "gold_error": gold_error,
    }


def store_metrics(shards: Mapping[Split, Iterable[Mapping[str, Any]]], num_bytes: int) -> dict[str, Any]:
    """The artifact's metrics from its shards' statistics, by split."""
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
    for split, values in by_split.items():
        if targets := total("targets", values):
            metrics[f"gold_nll_{split}"] = total("gold_nll_sum", values) / targets
    return metrics
