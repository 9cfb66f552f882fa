"""Which rows go through the teacher together, such that little of what it computes is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

MAX_PADDING = 0.05
"""Of the tokens of all batches of a window."""
WINDOW_BATCHES = 64
"""A window is this many batches' worth of tokens: long enough to find rows of like length, short enough that rows are
finished in about the order in which they are stored."""
_TOLERANCES = (1.0, 0.5, 0.35, 0.25, 0.18, 0.13, 0.09, 0.07, MAX_PADDING)


def length_buckets(lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Batches of row indices of like length, each at most `tokens_per_batch` with padding, or one row.

    Rows are bucketed within windows of consecutive rows, the longest first. Of a window's batch tokens at most
    MAX_PADDING are padding, so of a shard's and of a dump's too. Rows of fewer than two tokens predict nothing and are
    in no batch.
    """
    batches: list[list[int]] = []
    for window in _windows(lengths, tokens_per_batch * WINDOW_BATCHES):
        order = sorted(window, key=lambda index: -lengths[index])
        # What one batch may waste is loosened as far as the window as a whole allows: short rows are cheap to pad.
        for tolerance in _TOLERANCES:
            found = _cut(order, lengths, tokens_per_batch, tolerance)
            if padding(found, lengths) <= MAX_PADDING:
                break
        batches += found
    return batches


def padding(batches: Sequence[Sequence[int]], lengths: Sequence[int]) -> float:
    """The part of all batches' tokens that is padding."""
    padded_tokens = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    tokens = sum(lengths[index] for batch in batches for index in batch)
    return 1 - tokens / padded_tokens if padded_tokens else 0.0


def _windows(lengths: Sequence[int], window_tokens: int) -> Iterator[list[int]]:
    window: list[int] = []
    tokens = 0
    for index, length in enumerate(lengths):
        if length > 1:
            window.append(index)
            tokens += length
        if tokens >= window_tokens:
            yield window
            window, tokens = [], 0
    if window:
        yield window


def _cut(order: Sequence[int], lengths: Sequence[int], tokens_per_batch: int, tolerance: float) -> list[list[int]]:
    """Cuts rows of descending length where a batch would be full or waste more than `tolerance` of its tokens."""
    batches: list[list[int]] = []
    tokens = 0
    for index in order:
        if batches:
            padded_tokens = (len(batches[-1]) + 1) * lengths[batches[-1][0]]
            wasted = padded_tokens - tokens - lengths[index]
            if padded_tokens <= tokens_per_batch and wasted <= tolerance * padded_tokens:
                batches[-1].append(index)
                tokens += lengths[index]
                continue
        batches.append([index])
        tokens = lengths[index]
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
