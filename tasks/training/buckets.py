"""Losses between two distributions over K + 1 buckets: the teacher's K kept entries, and everything else as one.

With p the teacher's and q the student's masses of a position, in float64, where log q_b = −inf marks a bucket that does
not exist (an empty slot, or the tail where everything is kept):

    forward KL   Σ p (log p − log q)
    reverse KL   Σ q (log q − max(log p, LOG_FLOOR))
    JSD(β)       β Σ p (log p − log m) + (1 − β) Σ q (log q − log m),   m = β p + (1 − β) q,   0 < β < 1

As β → 0, JSD(β) / β → the forward KL; as β → 1, JSD(β) / (1 − β) → the reverse KL; at β = 0 and 1 it is 0 everywhere.
It is at most −β log β − (1 − β) log(1 − β), where the two share no bucket.

Each function returns the loss of a position and its slopes a_b = ∂/∂ log q_b − q_b Σ_c ∂/∂ log q_c. The gradient by a
logit is the slope of its bucket times its share of the bucket's mass: 1 for a kept entry, q_j / q_tail in the tail.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_FLOOR = -30.0
"""Nats. The least log p in the reverse KL, which is infinite where the student has mass and the teacher none, as where
a stored tail is empty. e^−30 = 9e-14 is far below what a float32 can tell from nothing beside a kept mass of one."""


@dataclass(frozen=True)
class Teacher:
    """The teacher's buckets of N positions; the last bucket is the tail.

    logprobs_NB: float64, normalised. mass_NB: what the forward KL weighs with, exp of these or each entry's part of the
    draws.
    """

    logprobs_NB: Tensor
    mass_NB: Tensor

    @classmethod
    def of(
        cls,
        topk_ids_NK: Tensor,
        topk_logprobs_NK: Tensor,
        tail_logprob_N: Tensor,
        draws_NK: Tensor | None,
        num_real: int,
    ) -> Teacher:
        """From what is stored; scaled to sum to one, since all of it is rounded."""
        # Where everything is kept the tail is an empty bucket: what rounding left in it is no mass.
        covered_N = (topk_ids_NK >= 0).sum(1) >= num_real
        logprobs_NB = torch.cat((topk_logprobs_NK, tail_logprob_N.masked_fill(covered_N, -torch.inf)[:, None]), 1)
        logprobs_NB = torch.log_softmax(logprobs_NB.double(), 1)
        if draws_NK is None:
            return cls(logprobs_NB, logprobs_NB.exp())
        share_NK = draws_NK.double() / draws_NK.double().sum(1, keepdim=True)
        return cls(logprobs_NB, torch.nn.functional.pad(share_NK, (0, 1)))

    def rows(self, rows: slice) -> Teacher:
        """A run of positions."""
        return Teacher(self.logprobs_NB[rows], self.mass_NB[rows])

    def entropy_N(self) -> Tensor:
        """Nats, over the buckets."""
        return -_weighted(self.logprobs_NB.exp(), self.logprobs_NB).sum(1)


def forward_kl(teacher: Teacher, student_NB: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and slope. With draws the loss is Σ c/n (log p − log q), whose gradient is unbiased."""
    loss_N = _weighted(teacher.mass_NB, teacher.logprobs_NB - student_NB).sum(1)
    return loss_N, student_NB.exp() - teacher.mass_NB


def reverse_kl(teacher: Teacher, student_NB: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and slope."""
    mass_NB = student_NB.exp()
    ratio_NB = student_NB - teacher.logprobs_NB.clamp(min=LOG_FLOOR)
    loss_N = _weighted(mass_NB, ratio_NB).sum(1)
    return loss_N, _weighted(mass_NB, ratio_NB - loss_N[:, None])


def jsd(teacher: Teacher, student_NB: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Loss and slope."""
    mass_NB = student_NB.exp()
    middle_NB = torch.logaddexp(teacher.logprobs_NB + math.log(beta), student_NB + math.log1p(-beta))
    by_student_NB = (1 - beta) * _weighted(mass_NB, student_NB - middle_NB)
    by_teacher_NB = beta * _weighted(teacher.mass_NB, teacher.logprobs_NB - middle_NB)
    slope_NB = by_student_NB - mass_NB * by_student_NB.sum(1, keepdim=True)
    return (by_student_NB + by_teacher_NB).sum(1), slope_NB


def _weighted(mass_NB: Tensor, values_NB: Tensor) -> Tensor:
    """Their product, 0 without mass whatever the value."""
    return torch.where(mass_NB > 0, mass_NB * values_NB, 0)
