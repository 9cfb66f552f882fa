"""The K largest of many values, exactly by (value descending, place ascending).

Letters: C positions, N values of each, K that are looked for.
"""

from __future__ import annotations

import torch
from torch import Tensor


def largest(values_CN: Tensor, num_kept: int) -> tuple[Tensor, Tensor]:
    """The K largest in order, and their places (int64)."""
    places_CK = lowest_of_largest(values_CN, num_kept)
    # Places are ascending, and the sort is stable.
    values_CK, order_CK = values_CN.gather(1, places_CK).sort(dim=1, descending=True, stable=True)
    return values_CK, places_CK.gather(1, order_CK)


def lowest_of_largest(values_CN: Tensor, num_kept: int) -> Tensor:
    """The places of the K largest, ascending."""
    num_entries = min(num_kept + 1, values_CN.shape[1])
    top_CK, places_CK = torch.topk(values_CN, num_entries, dim=1)
    if num_entries > num_kept:
        next_C = top_CK[:, num_kept]
        top_CK, places_CK = top_CK[:, :num_kept], places_CK[:, :num_kept].clone()
        # topk chooses freely among equals: where the cut goes through a tie, take the lowest places of it.
        tied = torch.nonzero((top_CK[:, -1] == next_C) & next_C.isfinite()).flatten()
        if len(tied):
            places_CK[tied] = _lowest_places(values_CN[tied], top_CK[tied], places_CK[tied])
    return places_CK.sort(dim=1).values


def _lowest_places(values_CN: Tensor, top_CK: Tensor, places_CK: Tensor) -> Tensor:
    """Replaces those at the K-th value by the lowest places that have it."""
    num_kept, num_values = places_CK.shape[1], values_CN.shape[1]
    threshold_C1 = top_CK[:, -1:]
    above_C1 = (top_CK > threshold_C1).sum(1, keepdim=True)
    all_places_N = torch.arange(num_values, device=places_CK.device, dtype=torch.int32)
    candidates_CN = torch.where(values_CN == threshold_C1, all_places_N, num_values)
    lowest_CK = torch.topk(candidates_CN, num_kept, dim=1, largest=False).values.sort(dim=1).values.long()
    rank_CK = torch.arange(num_kept, device=places_CK.device) - above_C1
    return torch.where(rank_CK < 0, places_CK, lowest_CK.gather(1, rank_CK.clamp(min=0)))
