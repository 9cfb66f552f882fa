"""Distillation losses over sparse targets, fused with the output head: tokens × vocabulary never exists.

For one position with student logits z over the V real rows, q = softmax(z / T), and the teacher's kept entries S with
log-probabilities log p_i and tail mass p_tail (scaled together to sum to one, since both are stored rounded), the two
are compared over K + 1 buckets, S and everything else, q_tail = Σ_{j∉S} q_j:

    loss = exp(γ H) · T² · (forward_kl · KL(p‖q) + reverse_kl · KL(q‖p) + jsd · JSD_β(p, q)) + ce · CE

CE is −log q_gold at T = 1; buckets.py defines the other three. H is the entropy of p in nats; no gradient goes through
it. By a logit of the tail the gradient of KL(p‖q) is q_j (1 − p_tail / q_tail): the tail is pushed as a whole, never to
zero as a renormalised top-K would. log q_tail is the logsumexp of the logits outside S less the full one, never
log(1 − Σ).

Where S was drawn n times from the teacher, entry i c_i times, the forward KL is the unbiased estimate
Σ_{i∈S} (c_i / n) (log p_i − log q_i). Its gradient, q_j − c_j / n, is that of the whole distribution in the mean.

Logits are cap · tanh(scale · (h·w) / cap) where the head has a scale and a cap; the gradient goes through both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from tasks.artifacts.errors import BadInputError
from tasks.training.buckets import Teacher, forward_kl, jsd, reverse_kl
from tasks.training.products import add_weight_gradient, hidden_gradient_into, logits_into

CHUNK_BYTES = 256 * 2**20
"""Size of one chunk's float32 logits: 441 positions at 152k. With a quarter, MKL's products take 1.25 × the time."""
GROUP_BYTES, CUDA_GROUP_BYTES = 4 * 2**20, 64 * 2**20
"""Size of the logits that are worked on at one time: on a CPU they stay in its cache, on CUDA they fill the device."""
SAFE_SUM = (1e-20, 1e30)
"""A sum of exponentials within these was neither cut off below nor is near float32's end (3e38)."""
SCALED_ROWS = 1024
"""Rows of a gradient that are multiplied and rounded at one time: 3.7 MB of float32 at 896 columns."""
PARTS = ("forward_kl", "reverse_kl", "jsd", "ce")
"""What a loss is mixed of."""


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


@dataclass(frozen=True)
class LossWeights:
    """Weights of the parts; β; the temperature of all but the cross-entropy; γ of the teacher's entropy.

    Raises:
        BadInputError: β is not between 0 and 1, where the divergence is 0 whatever the student does, or T is not
            positive.
    """

    forward_kl: float = 0.0
    reverse_kl: float = 0.0
    jsd: float = 0.0
    jsd_beta: float = 0.5
    ce: float = 0.0
    temperature: float = 1.0
    entropy_exponent: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.jsd_beta < 1:
            raise BadInputError(
                f"jsd_beta is {self.jsd_beta}; choose it between 0 (near which the divergence is that part of the "
                f"forward KL) and 1 (the reverse KL), both excluded, or use forward_kl or reverse_kl"
            )
        if not 0 < self.temperature < math.inf:
            raise BadInputError(f"the loss's temperature is {self.temperature}; choose a positive one")


@dataclass(frozen=True)
class HeadForm:
    """What an output head does besides its product: logit = cap · tanh(scale · (h·w) / cap).

    num_real: V, the tokenizer's size; the matrix's further rows are padding and take no part.
    """

    num_real: int
    scale: float = 1.0
    softcap: float | None = None


def head_loss(
    hidden_ND: Tensor,
    weight_RD: Tensor,
    targets: Targets,
    *,
    form: HeadForm,
    weights: LossWeights,
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss of N positions, summed, and its parts.

    Args:
        hidden_ND: the head's inputs at target positions only.
        weight_RD: the head's R rows.
        targets: see `Targets`.
        form: see `HeadForm`.
        weights: see `LossWeights`.
        chunk_tokens: positions whose logits or their gradients exist at one time; by default as many as fit
            `CHUNK_BYTES`.

    Returns:
        The weighted sum (0 for N = 0), float32 (float64 of float64), with a graph where grad mode is on; and a float64
        tensor without one: the sums of `PARTS`, without weights, T² and exp(γ H). The forward KL and the cross-entropy
        are always in it, the other two are 0 where their weight is.

    Raises:
        BadInputError: a reverse KL, a JSD or a weight by the teacher's entropy is asked of draws.
    """
    if targets.draws_NK is not None and (weights.reverse_kl or weights.jsd or weights.entropy_exponent):
        # The estimate of H would hang together with that of the KL, and so their product's mean would be another.
        raise BadInputError(
            "reverse_kl, jsd and entropy_exponent need the probability of every entry, which draws from the teacher "
            "do not give; use forward_kl alone with a sampled support, or a dump with a top-k or adaptive one"
        )
    chunk = chunk_tokens or max(1, CHUNK_BYTES // (4 * form.num_real))
    loss, sums_4 = _HeadLoss.apply(
        hidden_ND,
        weight_RD,
        targets,
        form,
        weights,
        chunk,
        # In the forward pass grad mode is always off, and needs_input_grad is true of a weight even under no_grad.
        torch.is_grad_enabled(),
    )
    return loss, sums_4


class _HeadLoss(torch.autograd.Function):
    """Computes the gradients in the forward pass, where a chunk's logits exist anyway; backward only scales them."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden_ND: Tensor,
        weight_RD: Tensor,
        targets: Targets,
        form: HeadForm,
        weights: LossWeights,
        chunk: int,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor]:
        exact = torch.float64 if hidden_ND.dtype == torch.float64 else torch.float32
        needs_hidden, needs_weight = (
            grad_enabled and needs
            for needs in ctx.needs_input_grad[:2]  # type: ignore[attr-defined]
        )
        needs_grad = needs_hidden or needs_weight
        weight_VD = weight_RD[: form.num_real]
        grad_hidden_ND = torch.empty_like(hidden_ND, dtype=exact) if needs_hidden else None
        grad_weight_RD = torch.empty_like(weight_RD, dtype=exact) if needs_weight else None
        if grad_weight_RD is not None:
            grad_weight_RD[form.num_real if len(hidden_ND) else 0 :].zero_()

        chunks = list(_even_runs(0, len(hidden_ND), chunk))
        length = chunks[0].stop if chunks else 0
        # A narrow gradient takes half of its logits' bytes: two halves of a chunk's logits, one after the other, and
        # the gradient of the whole chunk are together no more than the chunk's logits.
        narrow = hidden_ND.dtype != exact
        logits_CV = hidden_ND.new_empty(-(-length // 2) if narrow else length, form.num_real, dtype=exact)
        gradient_CV = hidden_ND.new_empty(length, form.num_real) if narrow and needs_grad else logits_CV
        rows_loss = _RowsLoss(form, weights, logits_CV)

        for chunk_rows in chunks:
            hidden_CD = hidden_ND[chunk_rows]
            for part in _even_runs(chunk_rows.start, chunk_rows.stop, len(logits_CV)):
                part_logits_CV = logits_CV[: part.stop - part.start]
                logits_into(part_logits_CV, hidden_ND[part], weight_VD)
                begin = part.start - chunk_rows.start if gradient_CV is not logits_CV else 0
                into_CV = gradient_CV[begin : begin + len(part_logits_CV)] if needs_grad else None
                rows_loss.add(part_logits_CV, targets.rows(part), into_CV)
            if grad_hidden_ND is not None:
                hidden_gradient_into(grad_hidden_ND[chunk_rows], gradient_CV[: len(hidden_CD)], weight_VD)
            if grad_weight_RD is not None:
                add_weight_gradient(
                    grad_weight_RD[: form.num_real],
                    gradient_CV[: len(hidden_CD)],
                    hidden_CD,
                    first=chunk_rows.start == 0,
                )

        ctx.save_for_backward(grad_hidden_ND, grad_weight_RD)  # type: ignore[arg-type]
        ctx.dtypes = (hidden_ND.dtype, weight_RD.dtype)  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(rows_loss.sums_4)
        return rows_loss.loss.to(exact), rows_loss.sums_4

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_loss: Tensor, _grad_sums: Tensor) -> tuple[Tensor | None, ...]:
        # In place where the graph dies with this pass: a second float32 matrix of 152k × 896 is 545 MB.
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        gradients = ctx.saved_tensors  # type: ignore[attr-defined]
        scaled = [
            None if gradient is None else _scaled(gradient, grad_loss, dtype, in_place=not keep)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)  # type: ignore[attr-defined]
        ]
        return (*scaled, *[None] * 5)


def _scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype, *, in_place: bool) -> Tensor:
    if gradient.dtype == dtype:
        return gradient.mul_(factor) if in_place else gradient * factor
    result = torch.empty_like(gradient, dtype=dtype)
    # By blocks that stay in the cache: one operator from float32 to bfloat16 over all of it takes 3 × the time.
    for block, narrow in zip(gradient.split(SCALED_ROWS), result.split(SCALED_ROWS), strict=True):
        narrow.copy_(block * factor)
    return result


def _even_runs(start: int, stop: int, longest: int) -> Iterator[slice]:
    """Cuts into as few runs of at most so many as there can be, the first ones the longest."""
    if stop > start:
        size = -(-(stop - start) // -(-(stop - start) // longest))
        for begin in range(start, stop, size):
            yield slice(begin, min(begin + size, stop))


class _RowsLoss:
    """Sums the loss of logits that come by parts of a chunk, and makes gradients of them, some rows at a time."""

    def __init__(self, form: HeadForm, weights: LossWeights, like_CV: Tensor) -> None:
        self._form = form
        self._weights = weights
        group_bytes = CUDA_GROUP_BYTES if like_CV.is_cuda else GROUP_BYTES
        self._group = max(1, group_bytes // (like_CV.element_size() * form.num_real))
        num_scratches = 1 if weights.temperature == 1 else 2
        self._scratches = [
            like_CV.new_empty(min(self._group, len(like_CV)), form.num_real) for _ in range(num_scratches)
        ]
        self.loss = like_CV.new_zeros((), dtype=torch.float64)
        self.sums_4 = like_CV.new_zeros(len(PARTS), dtype=torch.float64)

    def add(self, products_CV: Tensor, targets: Targets, gradient_CV: Tensor | None) -> None:
        """Overwrites the products; `gradient_CV`, in which the gradient by them is left, may be the same memory."""
        teacher = Teacher.of(*targets.tensors()[1:], targets.draws_NK, self._form.num_real)
        for rows in _even_runs(0, len(products_CV), self._group):
            gradient_GV = None if gradient_CV is None else gradient_CV[rows]
            self._add_group(products_CV[rows], targets.rows(rows), teacher.rows(rows), gradient_GV)

    def _add_group(self, logits_GV: Tensor, targets: Targets, teacher: Teacher, gradient_GV: Tensor | None) -> None:
        form, weights = self._form, self._weights
        if form.softcap is not None:
            logits_GV.mul_(form.scale / form.softcap).tanh_().mul_(form.softcap)
        elif form.scale != 1:
            logits_GV.mul_(form.scale)

        gold_G1 = targets.gold_N[:, None]
        gold_logit_G = logits_GV.gather(1, gold_G1)[:, 0].double()
        empty_GK = targets.topk_ids_NK < 0
        # An empty slot points at the first kept id: writing −inf there twice, or adding 0, changes nothing.
        ids_GK = torch.where(empty_GK, targets.topk_ids_NK[:, :1], targets.topk_ids_NK)
        logits_GK = logits_GV.gather(1, ids_GK)
        logits_GV.scatter_(1, ids_GK, -torch.inf)
        kept_GK = logits_GK.masked_fill(empty_GK, -torch.inf)
        # Without a teacher there is nothing to compare at T.
        temperature = weights.temperature if ids_GK.shape[1] else 1.0
        student = _Student.of(logits_GV, kept_GK, temperature, self._scratches[0])
        plain = student if temperature == 1 else _Student.of(logits_GV, kept_GK, 1.0, self._scratches[1])

        loss_G, parts_3G, slope_GB = _distillation(teacher, student.logprobs_GB, weights)
        if weights.entropy_exponent:
            weight_G = torch.exp(weights.entropy_exponent * teacher.entropy_N())
            loss_G, slope_GB = loss_G * weight_G, slope_GB * weight_G[:, None]
        ce_G = plain.lse_G - gold_logit_G
        self.loss += (temperature**2 * loss_G + weights.ce * ce_G).sum()
        self.sums_4 += torch.cat((parts_3G, ce_G[None])).sum(1)
        if gradient_GV is None:
            return

        # d(T² L(z/T))/dz = T · L'(z/T). A scale without a cap only multiplies.
        scale = form.scale if form.softcap is None else 1.0
        slope_GB = slope_GB * (temperature * scale)
        if plain is student:
            slope_GB = slope_GB + weights.ce * scale * student.logprobs_GB.exp()
        exact_GV = gradient_GV if gradient_GV.dtype == logits_GV.dtype and form.softcap is None else student.exps_GV
        torch.mul(student.exps_GV, student.factor_G1(slope_GB), out=exact_GV)
        kept_slope_GK = slope_GB[:, :-1]
        if plain is not student and weights.ce:
            ce_slope_GB = weights.ce * scale * plain.logprobs_GB.exp()
            exact_GV.addcmul_(plain.exps_GV, plain.factor_G1(ce_slope_GB))
            kept_slope_GK = kept_slope_GK + ce_slope_GB[:, :-1]
        exact_GV.scatter_add_(1, ids_GK, kept_slope_GK.to(exact_GV.dtype).masked_fill_(empty_GK, 0))
        exact_GV.scatter_add_(1, gold_G1, exact_GV.new_full(gold_G1.shape, -weights.ce * scale))
        if form.softcap is not None:
            logits_GV.scatter_(1, ids_GK, logits_GK)
            # d(cap · tanh(x · scale / cap))/dx = scale · (1 − (z / cap)²).
            exact_GV.mul_(logits_GV.mul_(1 / form.softcap).square_().mul_(-form.scale).add_(form.scale))
        if exact_GV is not gradient_GV:
            gradient_GV.copy_(exact_GV)


def _distillation(teacher: Teacher, student_GB: Tensor, weights: LossWeights) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted loss of each position, the three parts without weights, and the loss's slope by the buckets."""
    parts_3G = student_GB.new_zeros(3, len(student_GB))
    parts_3G[0], slope_GB = forward_kl(teacher, student_GB)
    loss_G, slope_GB = weights.forward_kl * parts_3G[0], weights.forward_kl * slope_GB
    if weights.reverse_kl:
        parts_3G[1], reverse_GB = reverse_kl(teacher, student_GB)
        loss_G, slope_GB = loss_G + weights.reverse_kl * parts_3G[1], slope_GB + weights.reverse_kl * reverse_GB
    if weights.jsd:
        parts_3G[2], jsd_GB = jsd(teacher, student_GB, weights.jsd_beta)
        loss_G, slope_GB = loss_G + weights.jsd * parts_3G[2], slope_GB + weights.jsd * jsd_GB
    return loss_G, parts_3G, slope_GB


@dataclass(frozen=True)
class _Student:
    """softmax(z / T) over the buckets, and over the tail's ids up to a factor of each row.

    exps_GV: 0 at kept ids. sums_G: its rows' sums. lse_G, logprobs_GB: float64.
    """

    exps_GV: Tensor
    sums_G: Tensor
    lse_G: Tensor
    logprobs_GB: Tensor

    @classmethod
    def of(cls, rest_GV: Tensor, kept_GK: Tensor, temperature: float, scratch_GV: Tensor) -> _Student:
        """From the logits with −inf at kept ids, and the kept ones with −inf where slots are empty."""
        exps_GV = scratch_GV[: len(rest_GV)]
        shift_G1 = rest_GV.new_zeros(len(rest_GV), 1)
        # Usual logits need no shift: the pass for it, and the one for their maximum, are saved. CUDA would have to wait
        # for the answer.
        sums_G = None if rest_GV.is_cuda else _exp_into(exps_GV, rest_GV, temperature)
        if sums_G is None or not bool(((sums_G > SAFE_SUM[0]) & (sums_G < SAFE_SUM[1])).all()):
            shift_G1 = rest_GV.amax(1, keepdim=True)
            # Everything is kept: −inf less itself is no number.
            shift_G1.masked_fill_(shift_G1 == -torch.inf, 0)
            sums_G = _exp_into(exps_GV, torch.sub(rest_GV, shift_G1, out=exps_GV), temperature)
        log_rest_G1 = sums_G.double().log()[:, None] + shift_G1.double() / temperature
        logits_GB = torch.cat((kept_GK.double() / temperature, log_rest_G1), 1)
        lse_G1 = logits_GB.logsumexp(1, keepdim=True)
        return cls(exps_GV, sums_G, lse_G1[:, 0], logits_GB - lse_G1)

    def factor_G1(self, slope_GB: Tensor) -> Tensor:
        """What the exponentials are multiplied with to spread the tail's slope over its ids."""
        factor_G = torch.where(self.sums_G > 0, slope_GB[:, -1] / self.sums_G, 0)
        return factor_G.to(self.exps_GV.dtype)[:, None]


def _exp_into(out_GV: Tensor, values_GV: Tensor, temperature: float) -> Tensor:
    """exp(values / T), and its rows' sums."""
    if temperature == 1:
        torch.exp(values_GV, out=out_GV)
    else:
        torch.mul(values_GV, 1 / temperature, out=out_GV).exp_()
    return out_GV.sum(1)
