"""The sparse distillation loss, fused with the output head: tokens × vocabulary never exists.

For one position with student logits z over the V real rows, q = softmax(z), and the teacher's kept entries S with
log-probabilities log p_i and tail mass p_tail (scaled together to sum to one, since both are stored rounded):

    KL = Σ_{i∈S} p_i (log p_i − log q_i) + p_tail (log p_tail − log q_tail),     q_tail = Σ_{j∉S} q_j
    CE = −log q_gold
    loss = kd · T² · KL at temperature T + ce · CE at temperature 1

This is the forward KL between the two distributions over K + 1 buckets. Its gradient is q_i − p_i on S and
q_j (1 − p_tail / q_tail) off S: the student's tail is pushed as a whole, never to zero as a renormalised top-K would.

Where S was drawn n times from the teacher, entry i c_i times, the loss is the unbiased estimate
KL = Σ_{i∈S} (c_i / n) (log p_i − log q_i). Its gradient, q_j − c_j / n, is that of the whole distribution in the mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

CHUNK_BYTES = 64 * 2**20
"""Size of one chunk's fp32 logits; small enough for a cache-friendly CPU chunk, large enough to fill a GPU's GEMM."""


@dataclass(frozen=True)
class Targets:
    """What N positions should predict. With K = 0 and a tail of 0 (all mass) only the cross-entropy says anything.

    gold_N: int64 token ids. topk_ids_NK: int64, −1 where a position keeps fewer than K. topk_logprobs_NK and
    tail_logprob_N: float32, −inf for no mass; at the temperature that the loss is called with. draws_NK: how often each
    entry was drawn; None where entries are not draws.
    """

    gold_N: Tensor
    topk_ids_NK: Tensor
    topk_logprobs_NK: Tensor
    tail_logprob_N: Tensor
    draws_NK: Tensor | None = None

    def to(self, device: torch.device) -> Targets:
        """The same on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def head(self, count: int) -> Targets:
        """The first `count` positions."""
        return self.rows(slice(count))

    def rows(self, rows: slice) -> Targets:
        """A run of positions."""
        return self._each(lambda tensor: tensor[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Targets:
        gold_N, topk_ids_NK, topk_logprobs_NK, tail_logprob_N = (change(tensor) for tensor in self.tensors())
        draws_NK = None if self.draws_NK is None else change(self.draws_NK)
        return Targets(gold_N, topk_ids_NK, topk_logprobs_NK, tail_logprob_N, draws_NK)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All but the draws."""
        return self.gold_N, self.topk_ids_NK, self.topk_logprobs_NK, self.tail_logprob_N

    @classmethod
    def of_gold(cls, gold_N: Tensor) -> Targets:
        """Targets without a teacher."""
        count = len(gold_N)
        return cls(gold_N, gold_N.new_empty(count, 0), torch.empty(count, 0), torch.zeros(count))


@dataclass(frozen=True)
class LossWeights:
    """Weights of the two terms, and the temperature of the first."""

    kd: float
    ce: float
    temperature: float = 1.0


def head_loss(
    hidden_ND: Tensor,
    weight_RD: Tensor,
    targets: Targets,
    *,
    num_real: int,
    weights: LossWeights,
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss of N positions, summed, and its parts.

    Args:
        hidden_ND: the head's inputs at target positions only.
        weight_RD: the head's R rows; those from `num_real` on are padding and take no part.
        targets: see `Targets`.
        num_real: V, the tokenizer's size.
        weights: see `LossWeights`.
        chunk_tokens: positions whose logits exist at one time; by default as many as fit `CHUNK_BYTES`.

    Returns:
        The sum kd·T²·KL + ce·CE (0 for N = 0), with a graph where grad mode is on, and a float64 tensor [Σ KL, Σ CE]
        without one.
    """
    chunk = chunk_tokens or max(1, CHUNK_BYTES // (4 * num_real))
    loss, parts = _HeadLoss.apply(
        hidden_ND,
        weight_RD,
        targets,
        num_real,
        weights,
        chunk,
        # In the forward pass grad mode is always off, and needs_input_grad is true of a weight even under no_grad.
        torch.is_grad_enabled(),
    )
    return loss, parts


class _HeadLoss(torch.autograd.Function):
    """Computes the gradients in the forward pass, where a chunk's logits exist anyway; backward only scales them."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden_ND: Tensor,
        weight_RD: Tensor,
        targets: Targets,
        num_real: int,
        weights: LossWeights,
        chunk: int,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor]:
        exact = torch.float64 if hidden_ND.dtype == torch.float64 else torch.float32
        # bf16 factors with an fp32 product are one CUDA kernel; a CPU has none, so there the factors are widened.
        widen = hidden_ND.dtype != exact and not hidden_ND.is_cuda
        weight_VD = weight_RD[:num_real]
        factor_VD = weight_VD.to(exact) if widen else weight_VD
        needs_hidden, needs_weight = (
            grad_enabled and needs
            for needs in ctx.needs_input_grad[:2]  # type: ignore[attr-defined]
        )
        grad_hidden_ND = torch.zeros_like(hidden_ND, dtype=exact) if needs_hidden else None
        grad_weight_RD = torch.zeros_like(weight_RD, dtype=exact) if needs_weight else None
        sums_2 = torch.zeros(2, dtype=torch.float64, device=hidden_ND.device)

        for start in range(0, len(hidden_ND), chunk):
            rows = slice(start, start + chunk)
            hidden_CD = hidden_ND[rows].to(exact) if widen else hidden_ND[rows]
            kl_C, ce_C, grad_CV = _chunk_loss(
                _product(hidden_CD, factor_VD.T, exact),
                targets.rows(rows),
                weights,
                needs_grad=needs_hidden or needs_weight,
            )
            sums_2 += torch.stack((kl_C.double().sum(), ce_C.double().sum()))
            if grad_CV is None:
                continue
            grad_CV = grad_CV.to(hidden_CD.dtype)
            if grad_hidden_ND is not None:
                grad_hidden_ND[rows] = _product(grad_CV, factor_VD, exact)
            if grad_weight_RD is not None:
                _add_product(grad_weight_RD[:num_real], grad_CV.T, hidden_CD)

        ctx.gradients = (grad_hidden_ND, grad_weight_RD)  # type: ignore[attr-defined]
        ctx.dtypes = (hidden_ND.dtype, weight_RD.dtype)  # type: ignore[attr-defined]
        loss = (weights.kd * weights.temperature**2 * sums_2[0] + weights.ce * sums_2[1]).to(exact)
        ctx.mark_non_differentiable(sums_2)
        return loss, sums_2

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_loss: Tensor, _grad_sums: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            None if gradient is None else torch.mul(gradient, grad_loss, out=torch.empty_like(gradient, dtype=dtype))
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)  # type: ignore[attr-defined]
        ]
        return (*scaled, *[None] * 5)


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.mm(left, right) if left.dtype == dtype else torch.mm(left, right, out_dtype=dtype)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, accumulated in `total`'s precision."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += torch.mm(left, right, out_dtype=total.dtype)


def _chunk_loss(
    logits_CV: Tensor, targets: Targets, weights: LossWeights, *, needs_grad: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """KL and CE of each position and the gradient of the weighted loss by the logits, which are overwritten."""
    if weights.temperature == 1:
        return _bucket_pass(logits_CV, targets, weights.kd, weights.ce, needs_grad=needs_grad)
    # d(T²·KL(z/T))/dz = T · dKL/d(z/T).
    kl_C, _, kd_grad_CV = _bucket_pass(
        logits_CV / weights.temperature, targets, weights.kd * weights.temperature, 0.0, needs_grad=needs_grad
    )
    _, ce_C, ce_grad_CV = _bucket_pass(logits_CV, targets, 0.0, weights.ce, needs_grad=needs_grad)
    if kd_grad_CV is None or ce_grad_CV is None:
        return kl_C, ce_C, None
    return kl_C, ce_C, kd_grad_CV.add_(ce_grad_CV)


def _bucket_pass(
    logits_CV: Tensor, targets: Targets, kd: float, ce: float, *, needs_grad: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """KL_C, CE_C and kd · dKL/dz + ce · dCE/dz, the latter in the memory of `logits_CV`."""
    dtype = logits_CV.dtype
    gold_C1 = targets.gold_N[:, None]
    gold_logit_C = logits_CV.gather(1, gold_C1)[:, 0]

    kept_CK = targets.topk_ids_NK >= 0
    # An empty slot points at the first kept id: writing −inf there twice, or adding 0, changes nothing.
    ids_CK = torch.where(kept_CK, targets.topk_ids_NK, targets.topk_ids_NK[:, :1])
    kept_logits_CK = logits_CV.gather(1, ids_CK).masked_fill_(~kept_CK, -torch.inf)
    logits_CV.scatter_(1, ids_CK, -torch.inf)
    rest_lse_C = torch.logsumexp(logits_CV, 1)
    lse_C = torch.logaddexp(rest_lse_C, torch.logsumexp(kept_logits_CK, 1))

    # Where everything is kept the tail is an empty bucket: what rounding left in it is no mass.
    covered_C = kept_CK.sum(1) >= logits_CV.shape[1]
    teacher_CB = torch.cat((targets.topk_logprobs_NK, targets.tail_logprob_N[:, None]), 1).to(dtype)
    teacher_CB[:, -1].masked_fill_(covered_C, -torch.inf)
    teacher_CB = torch.log_softmax(teacher_CB, 1)
    student_CB = torch.cat((kept_logits_CK, rest_lse_C[:, None]), 1) - lse_C[:, None]
    if targets.draws_NK is None:
        mass_CB = teacher_CB.exp()
    else:
        drawn_CK = targets.draws_NK.to(dtype)
        mass_CB = torch.cat((drawn_CK / drawn_CK.sum(1, keepdim=True), torch.zeros_like(rest_lse_C[:, None])), 1)
    kl_C = torch.where(mass_CB > 0, mass_CB * (teacher_CB - student_CB), 0).sum(1)
    ce_C = lse_C - gold_logit_C
    if not needs_grad:
        return kl_C, ce_C, None

    grad_CB = (kd + ce) * student_CB.exp() - kd * mass_CB
    grad_CV = logits_CV.sub_(rest_lse_C.masked_fill(covered_C, 0)[:, None]).exp_().mul_(grad_CB[:, -1:])
    grad_CV.scatter_add_(1, ids_CK, grad_CB[:, :-1].masked_fill(~kept_CK, 0))
    grad_CV.scatter_add_(1, gold_C1, torch.full_like(gold_logit_C, -ce)[:, None])
    return kl_C, ce_C, grad_CV
