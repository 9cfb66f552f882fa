"""The teacher's output embedding: hidden states to float32 logits, whole or a run of ids at a time.

Letters: C positions of a chunk, D hidden size, R rows of a weight, V vocabulary (real rows only), N ids of a run.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Fill = Callable[[int, Tensor], None]
"""fill(first, out_NC) writes the logits of ids first … first + N − 1 at every position. Called in ascending order."""
Transform = Callable[[Tensor], None]
"""Applies what a model does to its logits (scale, soft cap), element by element and in place."""

CONVERTED_ROWS = 2048
"""Rows of a 16-bit weight that the CPU holds in float32 at a time: 5 MB at hidden size 576, which stays in its cache.
The whole of a 152k vocabulary would be 350 MB."""


class Float32Head(nn.Module):
    """The output embedding with float32 logits, over the first V rows.

    In bfloat16 a logit of 16 is rounded by up to 0.06, and most positions tie across rank K.
    """

    def __init__(self, weight_RD: Tensor, bias_R: Tensor | None, vocab_size: int) -> None:
        super().__init__()
        self.weight_VD = weight_RD.detach()[:vocab_size]
        self.bias_V = None if bias_R is None else bias_R.detach()[:vocab_size].float()

    @property
    def vocab_size(self) -> int:
        return len(self.weight_VD)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (…, D) -> float32 logits (…, V)."""
        hidden_CD = hidden.reshape(-1, hidden.shape[-1])
        logits_VC = hidden_CD.new_empty((self.vocab_size, len(hidden_CD)), dtype=torch.float32)
        self.fill(hidden_CD)(0, logits_VC)
        return logits_VC.T.reshape(*hidden.shape[:-1], self.vocab_size)

    def fill(self, hidden_CD: Tensor, transform: Transform | None = None) -> Fill:
        """The logits of these positions, to be asked for in runs of ids."""
        weight_VD, bias_V = self.weight_VD, self.bias_V
        on_gpu_in_16_bits = weight_VD.is_cuda and weight_VD.dtype != torch.float32
        hidden_DC = hidden_CD.to(weight_VD.dtype if on_gpu_in_16_bits else torch.float32).T

        def fill(first: int, out_NC: Tensor) -> None:
            rows_ND = weight_VD[first : first + len(out_NC)]
            if on_gpu_in_16_bits:
                torch.mm(rows_ND, hidden_DC, out_dtype=torch.float32, out=out_NC)
            elif rows_ND.dtype == torch.float32:
                torch.mm(rows_ND, hidden_DC, out=out_NC)
            else:
                # The CPU multiplies 16-bit matrices only into 16-bit results.
                for rows, out in zip(rows_ND.split(CONVERTED_ROWS), out_NC.split(CONVERTED_ROWS), strict=True):
                    torch.mm(rows.float(), hidden_DC, out=out)
            if bias_V is not None:
                out_NC += bias_V[first : first + len(out_NC), None]
            if transform is not None:
                transform(out_NC)

        return fill
