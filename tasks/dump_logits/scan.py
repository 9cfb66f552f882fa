"""One pass over the vocabulary: a chunk's logits, and of each group of ids the maximum and the sum of exponentials.

The logits are asked for in blocks of ids small enough to be in the cache still when their groups are reduced. Top-K,
normaliser, tail and draws are then found from the groups: 1/32 of the vocabulary.

Letters: C positions, V vocabulary, G groups, B ids of a group (group g holds ids g · B … g · B + B − 1), N any number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.dump_logits.head import Fill

GROUP_SIZE = 32
"""B. Smaller groups make the search for the largest groups longer, larger ones that within them."""
CPU_BLOCK_BYTES = 2 * 2**20
GPU_BLOCK_BYTES = 256 * 2**20
LOG2_E = math.log2(math.e)
LOWEST = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class Groups:
    """What is known of C distributions. Ids from V on, which fill the last group, have a logit of -inf."""

    logits_GBC: Tensor
    max_CG: Tensor
    sums_TCG: tuple[Tensor, ...]
    """At each temperature, the first being 1: Σ exp((logit − the group's maximum) / T) over the group, in 1 … B.

    0 if the group has -inf alone.
    """

    def members(self, group_CN: Tensor) -> Tensor:
        """The logits (C, N, B) of each position's own N groups."""
        position_C1 = torch.arange(len(group_CN), device=group_CN.device)[:, None]
        members_CNB: Tensor = self.logits_GBC[group_CN, :, position_C1]
        return members_CNB

    def logits_at(self, ids_CN: Tensor) -> Tensor:
        """The logits (C, N) of each position's own N ids."""
        logits_VC = self.logits_GBC.flatten(0, 1)
        return logits_VC.gather(0, ids_CN.T).T

    def lse(self) -> Tensor:
        """Logarithm of the normaliser (C), float64."""
        max_C1 = self.max_CG.amax(1, keepdim=True)
        shares_CG = ((self.max_CG - max_C1.clamp(min=LOWEST)) * LOG2_E).exp2_() * self.sums_TCG[0]
        return shares_CG.sum(1, dtype=torch.float64).log() + max_C1[:, 0].double()


class Scan:
    """Scans chunk after chunk in the same memory: a result is good until the next call.

    Memory: the chunk's logits, 4 · V bytes a position, and 1/16 of that for each of the groups' numbers.
    """

    def __init__(self, vocab_size: int, temperatures: Sequence[float], *, block_bytes: int | None = None) -> None:
        self._vocab_size = vocab_size
        self._num_groups = -(-vocab_size // GROUP_SIZE)
        self._scales = [1.0, *(1 / temperature for temperature in temperatures)]
        self._block_bytes = block_bytes
        self._memory = torch.empty(0)

    def __call__(self, fill: Fill, num_positions: int, device: torch.device) -> Groups:
        logits_VC = self._room(num_positions, device)
        logits_VC[self._vocab_size :] = -torch.inf
        logits_GBC = logits_VC.view(self._num_groups, GROUP_SIZE, num_positions)
        max_GC = logits_VC.new_empty((self._num_groups, num_positions))
        sums_TGC = [torch.empty_like(max_GC) for _ in self._scales]
        step = self._groups_per_block(num_positions, device)
        scratch_GBC = torch.empty_like(logits_GBC[:step])
        for first in range(0, self._num_groups, step):
            block_GBC, block_max_GC = logits_GBC[first : first + step], max_GC[first : first + step]
            start, stop = first * GROUP_SIZE, min((first + step) * GROUP_SIZE, self._vocab_size)
            fill(start, logits_VC[start:stop])
            torch.amax(block_GBC, 1, out=block_max_GC)
            powers_GBC = scratch_GBC[: len(block_GBC)]
            for scale, sums_GC in zip(self._scales, sums_TGC, strict=True):
                # Each group is taken relative to its own maximum, so nothing underflows however peaked the position.
                torch.sub(block_GBC, block_max_GC.clamp(min=LOWEST)[:, None], out=powers_GBC)
                # exp2 takes 0.3 ns an element on the CPU, exp 0.8.
                powers_GBC.mul_(scale * LOG2_E).exp2_()
                torch.sum(powers_GBC, 1, out=sums_GC[first : first + step])
        return Groups(logits_GBC, max_GC.T.contiguous(), tuple(sums_GC.T.contiguous() for sums_GC in sums_TGC))

    def _room(self, num_positions: int, device: torch.device) -> Tensor:
        num_rows = self._num_groups * GROUP_SIZE
        if len(self._memory) < num_rows * num_positions or self._memory.device != device:
            # The old one must be free before the new one is made.
            self._memory = torch.empty(0)
            self._memory = torch.empty(num_rows * num_positions, device=device)
        return self._memory[: num_rows * num_positions].view(num_rows, num_positions)

    def _groups_per_block(self, num_positions: int, device: torch.device) -> int:
        block_bytes = self._block_bytes or (CPU_BLOCK_BYTES if device.type == "cpu" else GPU_BLOCK_BYTES)
        return min(self._num_groups, max(1, block_bytes // (4 * GROUP_SIZE * num_positions)))
