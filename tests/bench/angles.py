"""How far a truncated target turns the gradient away from the one of the teacher's full distribution.

The student is the teacher without its last layers (real_logits.py). Both gradients are of the KL alone, summed over
the same positions, by the head's weight and by the head's inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tasks.logits.positions import Positions
from tasks.training.losses import HeadForm, LossWeights, Targets, head_loss
from tests.bench.real_logits import SKIPPED_LAYERS, AnglePositions, angle_positions, head_weight

CHUNK = 64
"""Positions whose two full distributions exist at one time: 78 MB at 152k ids."""


@dataclass(frozen=True)
class Angles:
    """Degrees between the gradient with a truncated target and the full one, over `positions` positions."""

    weight: float
    """By the head's weight, all of it as one vector."""
    hidden: float
    """By the head's inputs, all of them as one vector."""
    length: float
    """Length of the weight's gradient over the full one's."""
    positions: int

    @property
    def said(self) -> str:
        """For conditions."""
        return (
            f"by the head's weight over {self.positions} positions (its length {self.length:.3f} of the full one's), "
            f"{self.hidden:.2f}° by the head's inputs; student = teacher without its last {SKIPPED_LAYERS} layers"
        )


class FullGradient:
    """The gradient of the KL from the teacher's full distribution, in float32, kept to compare with."""

    def __init__(self, vocabulary: str) -> None:
        self.at: AnglePositions = angle_positions(vocabulary)
        self.weight_VD = head_weight(vocabulary)
        self.student_ND = torch.from_numpy(self.at.student_hidden_ND)
        teacher_ND = torch.from_numpy(self.at.teacher_hidden_ND)
        self.by_weight_VD = torch.zeros_like(self.weight_VD)
        self.by_hidden_ND = torch.empty_like(self.student_ND)
        for start in range(0, len(teacher_ND), CHUNK):
            part = slice(start, start + CHUNK)
            student_CD = self.student_ND[part]
            gradient_CV = (student_CD @ self.weight_VD.T).softmax(1)
            gradient_CV -= (teacher_ND[part] @ self.weight_VD.T).softmax(1)
            self.by_hidden_ND[part] = gradient_CV @ self.weight_VD
            self.by_weight_VD.addmm_(gradient_CV.T, student_CD)

    def angles(self, positions: Positions) -> Angles:
        """Compares with the gradient of the training loss for these targets: the whole test split, as decoded."""
        targets = self._targets(positions)
        hidden_ND = self.student_ND.clone().requires_grad_()
        weight_VD = self.weight_VD.requires_grad_()
        weight_VD.grad = None
        form = HeadForm(len(weight_VD))
        loss, _ = head_loss(hidden_ND, weight_VD, targets, form=form, weights=LossWeights(forward_kl=1.0))
        loss.backward()
        assert hidden_ND.grad is not None
        assert weight_VD.grad is not None
        by_weight, length = _angle(weight_VD.grad, self.by_weight_VD)
        by_hidden, _ = _angle(hidden_ND.grad, self.by_hidden_ND)
        weight_VD.grad = None
        return Angles(by_weight, by_hidden, length, len(hidden_ND))

    def _targets(self, positions: Positions) -> Targets:
        where_N = self.at.positions_N
        counts_NK = positions.counts_PK[where_N].astype(np.float32)
        return Targets(
            gold_N=torch.from_numpy(self.at.gold_N),
            topk_ids_NK=torch.from_numpy(positions.topk_ids_PK[where_N].astype(np.int64)),
            topk_logprobs_NK=torch.from_numpy(positions.topk_logprobs_PK[where_N].astype(np.float32)),
            tail_logprob_N=torch.from_numpy(positions.tail_logprob_P[where_N].astype(np.float32)),
            draws_NK=torch.from_numpy(counts_NK) if counts_NK.shape[1] else None,
        )


def _angle(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Degrees between the two as vectors, and the length of the first over that of the second."""
    product = squares = other_squares = 0.0
    for a, b in zip(one.split(4096), other.split(4096), strict=True):
        product += float((a * b).sum(dtype=torch.float64))
        squares += float((a * a).sum(dtype=torch.float64))
        other_squares += float((b * b).sum(dtype=torch.float64))
    cosine = product / math.sqrt(squares * other_squares)
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine)))), math.sqrt(squares / other_squares)
