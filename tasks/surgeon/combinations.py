"""New rows as weighted sums of rows that exist."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Combinations:
    """N weighted sums of K rows each. The same sums may be taken over the rows of another matrix."""

    sources_NK: Tensor
    """int64: which rows. Entries of weight 0 fill up the shorter sums; they name a valid row."""
    weights_NK: Tensor
    """float32."""

    def __len__(self) -> int:
        return int(self.sources_NK.shape[0])

    def apply(self, rows_RD: Tensor) -> Tensor:
        """Row n = Σ_k weights[n, k] · rows[sources[n, k]], as float32 (N, D) on the device of `rows_RD`.

        Only the rows that are named are converted: the other 150,000 of a bfloat16 matrix stay as they are.
        """
        if not len(self):
            return rows_RD.new_zeros((0, rows_RD.shape[1]), dtype=torch.float32)
        used_U, local = torch.unique(self.sources_NK, return_inverse=True)
        used_UD = rows_RD[used_U.to(rows_RD.device)].float()
        return torch.nn.functional.embedding_bag(
            local.to(rows_RD.device), used_UD, per_sample_weights=self.weights_NK.to(rows_RD.device), mode="sum"
        )

    def over(self, ids_R: Tensor) -> Combinations:
        """The same sums where the sources number the entries of `ids_R`, now as those entries."""
        return Combinations(ids_R[self.sources_NK], self.weights_NK)
