"""Draws from whole distributions, which depend on seed, row and position alone.

Letters: P positions of a row, C of a chunk, N draws, G groups, B ids of a group.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tasks.dump_logits.scan import GROUP_SIZE, Groups

DRAWS_AT_ONCE = 64
"""The members of their groups stand in memory in float64: 8 MB at 512 positions."""


def draws_of(seed: int, row_id: str, num_positions: int, num_draws: int) -> npt.NDArray[np.float64]:
    """Uniforms (P, N) in [0, 1) from a counter-based generator whose key is (seed, row).

    Position p takes numbers p · N … p · N + N − 1: whatever the batch, the chunk or the shard, it gets the same.
    """
    key = hashlib.sha256(f"{seed}:{row_id}".encode()).digest()[:16]
    generator = np.random.Generator(np.random.Philox(key=np.frombuffer(key, "<u8")))
    return generator.random((num_positions, num_draws))


def drawn(groups: Groups, uniforms_CN: Tensor) -> Tensor:
    """The ids (C, N) of draws with replacement: the group by its share, then the id by its share of the group.

    Never an id of probability 0. Positions that are not finite get any id.
    """
    max_C1 = groups.max_CG.amax(1, keepdim=True).double()
    mass_CG = (groups.max_CG.double() - max_C1).exp_().mul_(groups.sums_TCG[0]).nan_to_num_()
    below_CG = mass_CG.cumsum(1)
    target_CN = uniforms_CN * below_CG[:, -1:]
    group_CN = _first_above(below_CG, target_CN)
    # How far the draw lies into its group, as a share of it.
    start_CN = torch.where(group_CN > 0, below_CG.gather(1, (group_CN - 1).clamp(min=0)), 0.0)
    share_CN = (target_CN - start_CN) / (below_CG.gather(1, group_CN) - start_CN)
    parts = zip(group_CN.split(DRAWS_AT_ONCE, 1), share_CN.split(DRAWS_AT_ONCE, 1), strict=True)
    return torch.cat([_within(groups, group_CN, share_CN) for group_CN, share_CN in parts], 1)


def _within(groups: Groups, group_CN: Tensor, share_CN: Tensor) -> Tensor:
    max_CN1 = groups.max_CG.gather(1, group_CN)[:, :, None].double()
    below_CNB = (groups.members(group_CN).double() - max_CN1).exp_().nan_to_num_().cumsum(2)
    target_CN1 = share_CN[:, :, None] * below_CNB[:, :, -1:]
    return group_CN * GROUP_SIZE + _first_above(below_CNB, target_CN1)[:, :, 0]


def _first_above(below: Tensor, target: Tensor) -> Tensor:
    """The first place (last axis) whose cumulated mass exceeds the target.

    Rounding can bring a target up to the total: it then means the last place that has any mass.
    """
    last_with_mass = torch.searchsorted(below, below[..., -1:].contiguous())
    above = torch.searchsorted(below, target, right=True).minimum(last_with_mass)
    return above.clamp_(max=below.shape[-1] - 1)
