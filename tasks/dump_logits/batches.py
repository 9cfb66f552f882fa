"""Which rows go through the teacher together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def length_buckets(lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Batches of row indices of like length, each at most `tokens_per_batch` with padding, or one row.

    The longest come first: what does not fit in memory fails in the first seconds. Rows of fewer than two tokens
    predict nothing and are in no batch.
    """
    order = sorted((index for index, length in enumerate(lengths) if length > 1), key=lambda index: -lengths[index])
    batches = []
    start = 0
    while start < len(order):
        count = max(1, tokens_per_batch // lengths[order[start]])
        batches.append(order[start : start + count])
        start += count
    return batches


def padded(rows: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows padded on the right with 0: ids (B, T) and the mask of real tokens (B, T), both int64."""
    width = max(len(row) for row in rows)
    ids_BT = np.zeros((len(rows), width), np.int64)
    mask_BT = np.zeros((len(rows), width), np.int64)
    for index, row in enumerate(rows):
        ids_BT[index, : len(row)] = row
        mask_BT[index, : len(row)] = 1
    return torch.from_numpy(ids_BT).to(device), torch.from_numpy(mask_BT).to(device)
