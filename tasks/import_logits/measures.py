"""What an import's receipts say beside the statistics of their positions: how far the source was no distribution."""

from __future__ import annotations

from typing import Any

from tasks.import_logits.aligned import ROUNDING, AlignedDocument
from tasks.logits.statistics import Receipts, ShardStatistics, store_metrics, total


class ImportStatistics:
    """Of one shard, document by document."""

    def __init__(self) -> None:
        self._statistics = ShardStatistics()
        self._rescaled = self._gold_known = 0
        self._excess = 0.0

    def add(self, document: AlignedDocument) -> None:
        """One document."""
        self._statistics.add(document.positions, document.loss_mask_T, document.gold_known_P)
        self._rescaled += int((document.excess_P > ROUNDING).sum())
        self._gold_known += int(document.gold_known_P.sum())
        self._excess += float(document.excess_P.sum())

    def record(self) -> dict[str, Any]:
        """The receipt's metrics."""
        return {
            **self._statistics.record(),
            "rescaled": self._rescaled,
            "gold_known": self._gold_known,
            "excess_sum": self._excess,
        }


def import_metrics(shards: Receipts, num_bytes: int) -> dict[str, Any]:
    """The artifact's metrics, under the names of a dump's; `num_bytes` is the size of shards and prior."""
    shards = {split: list(values) for split, values in shards.items()}
    metrics = store_metrics(shards, num_bytes)
    if positions := metrics["positions"]:
        metrics |= {
            "excess_mass": total(shards, "excess_sum") / positions,
            "rescaled": total(shards, "rescaled") / positions,
            "gold_known": total(shards, "gold_known") / positions,
        }
    return metrics
