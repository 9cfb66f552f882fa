"""From hidden states to truncated distributions, in pieces that never hold tokens × vocabulary.

Letters: C positions of a chunk, D hidden size, V vocabulary (real rows only), K kept, M temperatures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tasks.logits.codec import Positions

SMALL_TAIL_LOGIT = -60.0
"""Below e^-60 of the largest probability, float32 sums of exponentials run into subnormals (e^-87)."""


class Float32Head(nn.Module):
    """The output embedding with float32 logits, over the first V rows.

    In bfloat16 a logit of 16 is rounded by up to 0.06, and most positions tie across rank K.
    """

    def __init__(self, weight_RD: Tensor, bias_R: Tensor | None, vocab_size: int) -> None:
        super().__init__()
        weight_VD = weight_RD.detach()[:vocab_size]
        # The GPU multiplies 16-bit matrices into float32 sums; the CPU has no such kernel and gets a float32 copy.
        self.weight_VD = weight_VD if weight_VD.is_cuda else weight_VD.float()
        self.bias_V = None if bias_R is None else bias_R.detach()[:vocab_size].float()

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (…, D) -> float32 logits (…, V)."""
        flat_CD = hidden.reshape(-1, hidden.shape[-1])
        if self.weight_VD.dtype == torch.float32:
            logits_CV = flat_CD.float() @ self.weight_VD.T
        else:
            logits_CV = torch.mm(flat_CD.to(self.weight_VD.dtype), self.weight_VD.T, out_dtype=torch.float32)
        if self.bias_V is not None:
            logits_CV += self.bias_V
        return logits_CV.view(*hidden.shape[:-1], -1)


def largest(logits_CV: Tensor, num_kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """The K largest logits of each position, exactly by (logit descending, id ascending).

    Returns:
        values_CK, ids_CK (int64), and the largest logit that is not among them (C; -inf when K = V).
    """
    num_entries = min(num_kept + 1, logits_CV.shape[1])
    values_CN, ids_CN = torch.topk(logits_CV, num_entries, dim=1)
    values_CK, ids_CK = values_CN[:, :num_kept], ids_CN[:, :num_kept].clone()
    if num_entries > num_kept:
        next_C = values_CN[:, num_kept]
        # topk chooses freely among equals: where the cut goes through a tie, take the lowest ids of it.
        tied = torch.nonzero((values_CK[:, -1] == next_C) & next_C.isfinite()).flatten()
        if len(tied):
            ids_CK[tied] = _lowest_ids(logits_CV[tied], values_CK[tied], ids_CK[tied])
    else:
        next_C = torch.full_like(values_CK[:, 0], -torch.inf)
    # Ids ascending first, then a stable sort by value.
    ids_CK, order_CK = ids_CK.sort(dim=1)
    values_CK, order_CK = values_CK.gather(1, order_CK).sort(dim=1, descending=True, stable=True)
    return values_CK, ids_CK.gather(1, order_CK), next_C


def _lowest_ids(logits_CV: Tensor, values_CK: Tensor, ids_CK: Tensor) -> Tensor:
    """Replaces the entries at the K-th value by the lowest ids that have it."""
    num_kept, vocab_size = ids_CK.shape[1], logits_CV.shape[1]
    threshold_C1 = values_CK[:, -1:]
    above_C1 = (values_CK > threshold_C1).sum(1, keepdim=True)
    all_ids_V = torch.arange(vocab_size, device=ids_CK.device, dtype=torch.int32)
    candidates_CV = torch.where(logits_CV == threshold_C1, all_ids_V, vocab_size)
    lowest_CK = torch.topk(candidates_CV, num_kept, dim=1, largest=False).values.sort(dim=1).values.long()
    rank_CK = torch.arange(num_kept, device=ids_CK.device) - above_C1
    return torch.where(rank_CK < 0, ids_CK, lowest_CK.gather(1, rank_CK.clamp(min=0)))


def distributions(logits_CV: Tensor, gold_C: Tensor, num_kept: int, temperatures: Sequence[float]) -> Positions:
    """Truncates the distributions of C positions. Overwrites `logits_CV` (float32).

    The tail is a sum over the entries that are not kept, never 1 − Σ kept, and the normaliser is the sum of the two
    parts: nothing cancels, and the stored mass adds up to 1.
    """
    values_CK, ids_CK, next_C = largest(logits_CV, num_kept)
    max_C1 = values_CK[:, :1]
    values_CK, next_C = values_CK - max_C1, next_C - max_C1[:, 0]
    shifted_CV = logits_CV.sub_(max_C1)
    gold_shifted_C = shifted_CV.gather(1, gold_C[:, None])[:, 0].double()
    tempered = [_log_sums(shifted_CV / T, ids_CK, next_C / T) for T in temperatures]
    # Last, because it takes the logits' own memory.
    kept_C, tail_C = _log_sums(shifted_CV, ids_CK, next_C)
    lse_C = torch.logaddexp(kept_C, tail_C)
    logprobs_CK = values_CK.double() - lse_C[:, None]
    lse_CM, tail_CM = (logprobs_CK.new_empty(len(lse_C), len(tempered)) for _ in range(2))
    for index, (kept_T_C, tail_T_C) in enumerate(tempered):
        lse_T_C = torch.logaddexp(kept_T_C, tail_T_C)
        lse_CM[:, index] = lse_T_C - lse_C / temperatures[index]
        tail_CM[:, index] = tail_T_C - lse_T_C
    return Positions(
        ids_CK.masked_fill(logprobs_CK.isneginf(), -1).int().cpu().numpy(),
        logprobs_CK.float().cpu().numpy(),
        (tail_C - lse_C).float().cpu().numpy(),
        (gold_shifted_C - lse_C).float().cpu().numpy(),
        lse_CM.float().cpu().numpy(),
        tail_CM.float().cpu().numpy(),
    )


def _log_sums(scaled_CV: Tensor, ids_CK: Tensor, next_C: Tensor) -> tuple[Tensor, Tensor]:
    """log Σ exp over the kept and over the other entries, float64. The largest entry is 0. Overwrites `scaled_CV`."""
    small = torch.nonzero((next_C < SMALL_TAIL_LOGIT) & next_C.isfinite()).flatten()
    small_tail = scaled_CV[small].scatter_(1, ids_CK[small], -torch.inf).logsumexp(1).double()
    exp_CV = scaled_CV.exp_()
    kept_C = exp_CV.gather(1, ids_CK).double().sum(1).log()
    tail_C = exp_CV.scatter_(1, ids_CK, 0.0).sum(1).double().log()
    tail_C[small] = small_tail
    return kept_C, tail_C
