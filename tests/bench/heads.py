"""Random hidden states, an output matrix and sparse targets in the size of a small student with a large vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.training.losses import HeadForm, LossWeights, Targets, head_loss
from tests.training.parts import gold_targets

V, D, K = 151_936, 896, 64
"""Those of Qwen2.5-0.5B, and 64 entries."""
FORM = HeadForm(V)
CE_AND_KL = LossWeights(forward_kl=0.9, ce=0.1)
CE_ONLY = LossWeights(ce=1.0)


@dataclass(frozen=True)
class HeadInputs:
    """Of N positions. `targets` has a teacher, `gold` has none."""

    hidden_ND: Tensor
    weight_VD: Tensor
    targets: Targets
    gold: Targets

    @classmethod
    def make(cls, num_positions: int, dtype: torch.dtype, device: str = "cpu", width: int = D) -> HeadInputs:
        """Logits of the student spread by 1.5 nats, targets kept by chance: no time here depends on values."""
        generator = torch.Generator().manual_seed(0)
        hidden_ND = torch.randn(num_positions, width, generator=generator).to(device, dtype)
        weight_VD = torch.randn(V, width, generator=generator).mul_(1.5 / width**0.5).to(device, dtype)
        # Distinct ids: one of each of K equal ranges.
        step = V // K
        ids_NK = torch.randint(step, (num_positions, K), generator=generator) + step * torch.arange(K)
        logprobs_NB = torch.log_softmax(2 * torch.randn(num_positions, K + 1, generator=generator), 1)
        gold_N = torch.randint(V, (num_positions,), generator=generator)
        targets = Targets(gold_N, ids_NK, logprobs_NB[:, :-1].contiguous(), logprobs_NB[:, -1].contiguous())
        targets, gold = (part.to(torch.device(device)) for part in (targets, gold_targets(gold_N)))
        return cls(hidden_ND.requires_grad_(), weight_VD.requires_grad_(), targets, gold)

    def fused(self, targets: Targets, weights: LossWeights) -> None:
        """The fused loss and both gradients."""
        self.hidden_ND.grad = self.weight_VD.grad = None
        loss, _ = head_loss(self.hidden_ND, self.weight_VD, targets, form=FORM, weights=weights)
        loss.backward()
