"""Orthogonal matching pursuit of many rows over a few thousand anchors, on the anchors' Gram matrix.

Plain OMP looks at every shared row in every step: 2 · shared · D · k operations a target. Two things make it cheap. The
candidates are the most used shared tokens alone. And what a step changes in the inner products with them follows from
the Gram matrix, so that a step costs 2 · anchors · (steps so far), whatever D is.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tasks.artifacts.errors import BadInputError
from tasks.surgeon.batches import PURSUED_ON_CPU, PURSUED_ON_GPU
from tasks.surgeon.combinations import Combinations

_REFIT_BATCH = 64
"""Targets whose chosen anchors are copied in float64 at once: 64 · 64 · 896 · 8 bytes are 29 MB."""
_NOTHING_LEFT = 1e-6
"""A step that would explain a smaller share of a target's norm than this is float32 noise."""
_DEPENDENT = 1e-5
"""An anchor of which a smaller share of its square lies outside the chosen ones adds only noise."""


def most_used_anchors(ids_S: np.ndarray, num_anchors: int) -> np.ndarray:
    """Positions in `ids_S` (int64, ids of one BPE) of the smallest `num_anchors` ids, ascending; all of fewer.

    A BPE numbers its tokens in the order of their merges, most frequent pairs first.
    """
    return np.sort(np.argsort(ids_S, kind="stable")[:num_anchors])


def anchored_pursuit(
    targets_ND: Tensor,
    anchors_AD: Tensor,
    k: int,
    *,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    after_batch: Callable[[], None] = lambda: None,
) -> Combinations:
    """Each target as a sum of at most k anchors: greedy choice, then the coefficients of least squares over the chosen.

    Chosen is the anchor whose inner product with what is left of the target is largest, with no regard to the anchor's
    length, as mergekit does. A target that fewer anchors explain wholly gets fewer; the rest has weight 0. The choice
    is float32 work, the coefficients are solved in float64. `batch_size` targets at once; None takes what is fast on
    `device`. Another size changes the choice only between anchors that tie to about 1e-6. `after_batch` is called after
    each of them, and may raise to end the work.

    Returns:
        Combinations over positions in `anchors_AD`, K = k, on the CPU.

    Raises:
        BadInputError: k is more than the number of anchors, or a row is not finite.
    """
    for what, rows in (("anchors", anchors_AD), ("rows to be made", targets_ND)):
        if num_broken := int((~rows.isfinite()).any(dim=1).sum()):
            raise BadInputError(
                f"{num_broken} of the {len(rows)} {what} are not finite in the model that they are read from; give "
                f"another one, or its weights in a dtype that holds them"
            )
    device = torch.device(device)
    anchors_AD = anchors_AD.to(device, torch.float32)
    if k > anchors_AD.shape[0]:
        raise BadInputError(f"k is {k}, but there are only {anchors_AD.shape[0]} anchors to choose from; lower k")
    size = batch_size or (PURSUED_ON_GPU if device.type == "cuda" else PURSUED_ON_CPU)
    gram_AA = anchors_AD @ anchors_AD.T
    sources_NK = torch.empty((targets_ND.shape[0], k), dtype=torch.int64)
    weights_NK = torch.empty((targets_ND.shape[0], k))
    basis_BKA = torch.empty((min(size, targets_ND.shape[0]), k, anchors_AD.shape[0]), device=device)
    for start in range(0, targets_ND.shape[0], size):
        targets_BD = targets_ND[start : start + size].to(device, torch.float32)
        sources_BK, used_BK = _choose(targets_BD, anchors_AD, gram_AA, basis_BKA[: targets_BD.shape[0]])
        weights_BK = _fit(targets_BD, anchors_AD, sources_BK, used_BK)
        sources_NK[start : start + size], weights_NK[start : start + size] = sources_BK.cpu(), weights_BK.cpu()
        after_batch()
    return Combinations(sources_NK, weights_NK)


def cosines(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    """Cosine of each pair of rows (N,), float32; 0 where a row is zero."""
    return torch.nn.functional.cosine_similarity(a_ND.float(), b_ND.float(), dim=1)


def _choose(targets_BD: Tensor, anchors_AD: Tensor, gram_AA: Tensor, basis_BKA: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the chosen anchors (B, K), and which of them count.

    basis[b, t] holds the inner products of every anchor with the t-th direction of the orthonormal basis that the
    chosen anchors span; `left` those with what is left of the target.
    """
    num_targets, k, _ = basis_BKA.shape
    rows_B1 = torch.arange(num_targets, device=targets_BD.device)[:, None]
    sources_BK = torch.zeros((num_targets, k), dtype=torch.int64, device=targets_BD.device)
    used_BK = torch.zeros_like(sources_BK, dtype=torch.bool)
    alive_B1 = torch.ones_like(rows_B1, dtype=torch.bool)
    left_BA = targets_BD @ anchors_AD.T
    smallest_B1 = _NOTHING_LEFT * targets_BD.norm(dim=1, keepdim=True)
    for step in range(k):
        if step:
            # Orthogonal to what is left, but for rounding.
            left_BA.scatter_(1, sources_BK[:, :step], 0)
        source_B1 = left_BA.abs().argmax(dim=1, keepdim=True)
        direction_BA = basis_BKA[:, step]
        direction_BA.copy_(gram_AA[source_B1[:, 0]])
        square_B1 = direction_BA.gather(1, source_B1)
        if step:
            parts_B1T = basis_BKA[rows_B1, torch.arange(step, device=rows_B1.device), source_B1][:, None]
            direction_BA -= torch.bmm(parts_B1T, basis_BKA[:, :step])[:, 0]
        outside_B1 = direction_BA.gather(1, source_B1)
        length_B1 = outside_B1.clamp(min=torch.finfo(torch.float32).tiny).sqrt()
        amount_B1 = left_BA.gather(1, source_B1) / length_B1
        alive_B1 &= (outside_B1 > _DEPENDENT * square_B1) & (amount_B1.abs() > smallest_B1)
        direction_BA.mul_(alive_B1 / length_B1)
        left_BA.addcmul_(direction_BA, amount_B1 * alive_B1, value=-1)
        sources_BK[:, step : step + 1], used_BK[:, step : step + 1] = source_B1, alive_B1
    # What filled up is named alike for every batch size.
    return torch.where(used_BK, sources_BK, sources_BK[:, :1]), used_BK


def _fit(targets_BD: Tensor, anchors_AD: Tensor, sources_BK: Tensor, used_BK: Tensor) -> Tensor:
    """Coefficients of least squares (B, K) over the chosen anchors that count, 0 for the others."""
    weights = []
    for start in range(0, targets_BD.shape[0], _REFIT_BATCH):
        part = slice(start, start + _REFIT_BATCH)
        used_BK1 = used_BK[part, :, None].double()
        chosen_BKD = anchors_AD[sources_BK[part]].double() * used_BK1
        normal_BKK = chosen_BKD @ chosen_BKD.mT + torch.diag_embed(1 - used_BK1[..., 0])
        factor_BKK = torch.linalg.cholesky(normal_BKK)
        right_BK1 = chosen_BKD @ targets_BD[part, :, None].double()
        weights.append(torch.cholesky_solve(right_BK1, factor_BKK)[..., 0].float())
    return torch.cat(weights)
