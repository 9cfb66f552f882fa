"""Logits of a bfloat16 head on a CPU with bfloat16 units, at the price of a bfloat16 product.

Such a product is twice as fast as float32's, but its result comes in bfloat16 only: a logit of 16 is rounded by up to
0.06. What the product adds to is not rounded before, though: minus an estimate of each position's largest logit goes in
first, so that a logit is rounded by 1/256 of its distance from the top, where the mass is. The ids below EXACT_IDS, the
commonest of a vocabulary made by merges, are computed in float32, and so are, afterwards, the candidates for the
entries to keep. So entries, order and the following token have float32 logits, and rounding is left in the tail alone.

Against float32 logits of the same hidden states (SmolLM2-135M, 1536 positions of English and code, K = 64) log-
probabilities are off by 2e-5 nat in the mean and 3e-4 at most, the tail's by 5e-4 and 6e-3. Logits in plain bfloat16
put the normaliser off by 1.4e-2 and 0.12; other batch shapes alone change a bfloat16 model's numbers by some 1e-2.

Letters: C positions, D hidden size, V vocabulary, N candidates or ids of a run, K entries that are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tasks.dump_logits.head import Float32Head

EXACT_IDS = 2048
NUM_SPARE = 32
"""Candidates beyond K. Ids whose rounded logits are within twice the rounding of the K-th could belong before it."""
RELATIVE_BOUND = 1.02 * 2.0**-8
ABSOLUTE_BOUND = 2.0**-10
"""|rounded − exact| ≤ RELATIVE_BOUND · |rounded| + ABSOLUTE_BOUND: half a unit in the last place of 8 bits, and what
the order of summation makes of sums of some hundred products."""
GATHERED_BYTES = 2 * 2**20


def can_round(head: Float32Head, hidden_CD: Tensor) -> bool:
    """Whether these products are of bfloat16 on both sides, faster so, and large enough for it to matter."""
    return (
        head.weight_VD.dtype == hidden_CD.dtype == torch.bfloat16
        and head.weight_VD.device.type == "cpu"
        and head.bias_V is None
        and head.vocab_size >= 8 * EXACT_IDS
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class RoundedLogits:
    """Logits of C positions, less an offset of each position."""

    def __init__(self, head: Float32Head, hidden_CD: Tensor) -> None:
        self._weight_VD = head.weight_VD
        self._hidden_CD = hidden_CD.bfloat16()
        self._exact_fill = head.fill(hidden_CD)
        self._offset_C = self._offset()

    def _offset(self) -> Tensor:
        logits_NC = self._hidden_CD.new_empty((EXACT_IDS, len(self._hidden_CD)), dtype=torch.float32)
        self._exact_fill(0, logits_NC)
        self._first_NC = logits_NC
        offset_C = logits_NC.amax(0).bfloat16()
        logits_NC -= offset_C.float()
        return offset_C

    def fill(self, first: int, out_NC: Tensor) -> None:
        """As `Fill` in tasks/dump_logits/head.py."""
        num_exact = max(0, min(len(out_NC), EXACT_IDS - first))
        out_NC[:num_exact] = self._first_NC[first : first + num_exact]
        if num_exact < len(out_NC):
            rows_ND = self._weight_VD[first + num_exact : first + len(out_NC)]
            # The product is added to what stands here in float32, and the sum is rounded once.
            rounded_NC = self._offset_C.new_empty((len(rows_ND), len(self._offset_C))).copy_(-self._offset_C)
            torch.addmm(rounded_NC, rows_ND, self._hidden_CD.T, out=rounded_NC)
            out_NC[num_exact:] = rounded_NC

    def exact(self, ids_CN: Tensor) -> Tensor:
        """The float32 logits of each position's own ids, less the offset."""
        num_ids, size = ids_CN.shape[1], self._weight_VD.shape[1]
        step = max(1, GATHERED_BYTES // (4 * num_ids * size))
        parts = []
        for ids_SN, hidden_SD in zip(ids_CN.split(step), self._hidden_CD.split(step), strict=True):
            # A fifth of the time that indexing with ids_SN takes, and the product a tenth of bmm's with one column.
            rows_SND = self._weight_VD.index_select(0, ids_SN.flatten()).view(*ids_SN.shape, size)
            parts.append(rows_SND.float().mul_(hidden_SD.float()[:, None]).sum(2))
        return torch.cat(parts).sub_(self._offset_C.float()[:, None])

    def proven(self, rounded_CN: Tensor, exact_CN: Tensor, num_kept: int) -> Tensor:
        """Positions (C) whose K largest logits are certainly among the candidates, the N largest by rounded logit.

        What is no candidate has a rounded logit of the last one at most. Where the bound fails on a candidate, this
        machine's product rounds otherwise, and nothing is certain.
        """
        bound_CN = rounded_CN.abs() * RELATIVE_BOUND + ABSOLUTE_BOUND
        as_bounded_C = ((rounded_CN - exact_CN).abs() <= bound_CN).all(1)
        most_outside_C = rounded_CN[:, -1] + bound_CN[:, -1]
        return as_bounded_C & (exact_CN.topk(num_kept, dim=1).values[:, -1] > most_outside_C)
