"""The training loss from its definition: dense logits in float64, one position at a time, gradients by autograd."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tasks.training.losses import HeadForm, LossWeights, Targets

FLOOR = math.exp(-30)
"""The least teacher's mass that a reverse KL divides by."""


def dense_loss(
    hidden_ND: Tensor, weight_RD: Tensor, targets: Targets, form: HeadForm, weights: LossWeights
) -> tuple[Tensor, Tensor]:
    """The weighted sum with a graph, and the four sums of the parts."""
    loss, sums_4 = hidden_ND.new_zeros(()), hidden_ND.new_zeros(4)
    for row in range(len(hidden_ND)):
        logits_V = form.scale * (weight_RD[: form.num_real] @ hidden_ND[row])
        if form.softcap is not None:
            logits_V = form.softcap * torch.tanh(logits_V / form.softcap)
        kept = targets.topk_ids_NK[row] >= 0
        ids = targets.topk_ids_NK[row][kept]
        stored = torch.cat((targets.topk_logprobs_NK[row][kept], targets.tail_logprob_N[row, None])).double().exp()
        if len(ids) == form.num_real:
            stored[-1] = 0
        p_B = stored / stored.sum()
        q_V = torch.softmax(logits_V / weights.temperature, 0)
        outside = torch.ones(form.num_real, dtype=torch.bool)
        outside[ids] = False
        q_B = torch.cat((q_V[ids], q_V[outside].sum()[None]))
        m_B = weights.jsd_beta * p_B + (1 - weights.jsd_beta) * q_B

        if targets.draws_NK is not None:
            share_B = torch.cat((targets.draws_NK[row][kept].double(), torch.zeros(1, dtype=torch.float64)))
            forward = _sum(share_B / share_B.sum(), p_B, q_B)
        else:
            forward = _sum(p_B, p_B, q_B)
        nothing = hidden_ND.new_zeros(())
        reverse = _sum(q_B, q_B, p_B.clamp(min=FLOOR)) if weights.reverse_kl else nothing
        jsd = nothing
        if weights.jsd:
            jsd = weights.jsd_beta * _sum(p_B, p_B, m_B) + (1 - weights.jsd_beta) * _sum(q_B, q_B, m_B)
        ce = -torch.log_softmax(logits_V, 0)[targets.gold_N[row]]

        entropy = -sum(float(p * p.log()) for p in p_B if p > 0)
        mixed = weights.forward_kl * forward + weights.reverse_kl * reverse + weights.jsd * jsd
        loss = loss + math.exp(weights.entropy_exponent * entropy) * weights.temperature**2 * mixed + weights.ce * ce
        sums_4 = sums_4 + torch.stack((forward, reverse, jsd, ce)).detach()
    return loss, sums_4


def _sum(weight_B: Tensor, above_B: Tensor, below_B: Tensor) -> Tensor:
    """Σ w log(a / b) over the buckets with weight."""
    some = weight_B > 0
    return (weight_B[some] * (above_B[some] / below_B[some]).log()).sum()


def teacher(logits_NV: Tensor, num_kept: int, temperature: float = 1.0, empty: tuple[int, ...] = ()) -> Targets:
    """Truncates dense float64 logits; the first rows have so many empty slots."""
    logprobs_NV = torch.log_softmax(logits_NV / temperature, 1)
    ids_NK = logits_NV.topk(num_kept, 1).indices
    for row, count in enumerate(empty):
        ids_NK[row, num_kept - count :] = -1
    kept_NK = ids_NK >= 0
    values_NK = logprobs_NV.gather(1, ids_NK.clamp(min=0)).masked_fill(~kept_NK, -torch.inf)
    rest_NV = logprobs_NV.clone()
    for row in range(len(ids_NK)):
        rest_NV[row, ids_NK[row][kept_NK[row]]] = -torch.inf
    return Targets(gold_of(logits_NV), ids_NK, values_NK.float(), rest_NV.logsumexp(1).float())


def drawn(logits_NV: Tensor, num_draws: int, seed: int) -> Targets:
    """Draws from the dense teacher, with its log-probabilities at the entries that came."""
    logprobs_NV = torch.log_softmax(logits_NV, 1)
    generator = torch.Generator().manual_seed(seed)
    ids_NC = torch.multinomial(logprobs_NV.exp(), num_draws, replacement=True, generator=generator)
    counts_NV = torch.zeros_like(logits_NV).scatter_add_(1, ids_NC, torch.ones_like(ids_NC, dtype=logits_NV.dtype))
    came_NV = counts_NV > 0
    order_NV = logprobs_NV.masked_fill(~came_NV, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :num_draws]
    came_NK = came_NV.gather(1, order_NV)
    values_NK = logprobs_NV.gather(1, order_NV).masked_fill(~came_NK, -torch.inf)
    tail_N = logprobs_NV.masked_fill(came_NV, -torch.inf).logsumexp(1)
    counts_NK = counts_NV.gather(1, order_NV)
    ids_NK = order_NV.masked_fill(~came_NK, -1)
    return Targets(gold_of(logits_NV), ids_NK, values_NK.float(), tail_N.float(), counts_NK.float())


def gold_of(logits_NV: Tensor) -> Tensor:
    """Any tokens; kept by some positions and not by others."""
    return 7 * torch.arange(len(logits_NV)) % logits_NV.shape[1]


def gradients(
    function: Callable[[Tensor, Tensor], Tensor], hidden_ND: Tensor, weight_RD: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, dX, dW."""
    hidden_ND, weight_RD = hidden_ND.clone().requires_grad_(), weight_RD.clone().requires_grad_()
    loss = function(hidden_ND, weight_RD)
    # A factor other than 1, since backward has to scale what forward prepared.
    (0.37 * loss).backward()
    assert hidden_ND.grad is not None
    assert weight_RD.grad is not None
    return loss.detach(), hidden_ND.grad / 0.37, weight_RD.grad / 0.37


def relative(found: Tensor, expected: Tensor) -> float:
    """Length of the difference over that of the expected."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())
