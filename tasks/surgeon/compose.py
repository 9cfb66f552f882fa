"""Rows of tokens that only the donor has, from the student's own rows for the pieces of their text.

As input the last piece says most, since the model reads on from there. As output no weighing beat the plain mean: the
first piece is what the model would have predicted, but a row near to it takes its probability. README.md has figures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tasks.surgeon.combinations import Combinations


def composed(pieces: Sequence[tuple[int, ...]], *, scale: float = 1.0, decay: float = 1.0) -> Combinations:
    """Weighted means of the pieces' rows, as combinations over student ids, one for each token.

    Args:
        pieces: The student's ids for each token, one at least.
        scale: Sum of a token's weights.
        decay: Weight of a piece over that of the next one; 1 is the plain mean.
    """
    longest = max((len(ids) for ids in pieces), default=1)
    lengths_N1 = torch.tensor([len(ids) for ids in pieces], dtype=torch.int64).reshape(-1, 1)
    # Filled up with the first piece, at weight 0.
    filled = [ids + ids[:1] * (longest - len(ids)) for ids in pieces]
    sources_NK = torch.tensor(filled, dtype=torch.int64).reshape(-1, longest)
    to_end_NK = lengths_N1 - 1 - torch.arange(longest)
    weights_NK = torch.where(to_end_NK >= 0, decay ** to_end_NK.clamp(min=0), 0.0)
    return Combinations(sources_NK, scale * weights_NK / weights_NK.sum(dim=1, keepdim=True))
