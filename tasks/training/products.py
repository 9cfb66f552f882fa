"""The three matrix products of an output head, with float32 sums where the factors are bfloat16.

    logits = hidden @ weightᵀ        dX = gradient @ weight        dW += gradientᵀ @ hidden

CUDA has a kernel with bfloat16 factors and a float32 result. On a CPU a result has its factors' type, so:

- logits, which must be float32 (bfloat16 rounds a logit of 16 by up to 0.06), are made of factors widened by blocks of
  rows, since a whole widened weight is 545 MB at 152k × 896. Widened bfloat16 factors lose nothing when oneDNN narrows
  them again, so it may use the processor's bfloat16 units, and where it has none it is faster than MKL on AMD.
- dX and each chunk's part of dW are rounded to bfloat16, the type of the gradients that they become, after summing in
  float32; the parts of dW are summed in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

BLOCK_ROWS = 1024
"""Rows of the weight that are widened, and of dW that are added, at one time: 3.7 MB of float32 at 896 columns stay in
the cache."""
CUDA_BLOCK_BYTES = 256 * 2**20
"""Size of a float32 part of dW before it is added, on CUDA."""


def logits_into(logits_CV: Tensor, hidden_CD: Tensor, weight_VD: Tensor) -> None:
    """logits = hidden @ weightᵀ."""
    if hidden_CD.dtype == logits_CV.dtype:
        torch.mm(hidden_CD, weight_VD.T, out=logits_CV)
    elif hidden_CD.is_cuda:
        logits_CV.copy_(torch.mm(hidden_CD, weight_VD.T, out_dtype=logits_CV.dtype))
    else:
        wide_CD = hidden_CD.to(logits_CV.dtype)
        block_BD = torch.empty(min(BLOCK_ROWS, len(weight_VD)), weight_VD.shape[1], dtype=logits_CV.dtype)
        with _bfloat16_units():
            for rows in _blocks(len(weight_VD), BLOCK_ROWS):
                wide_BD = block_BD[: rows.stop - rows.start].copy_(weight_VD[rows])
                torch.mm(wide_CD, wide_BD.T, out=logits_CV[:, rows])


def hidden_gradient_into(total_CD: Tensor, gradient_CV: Tensor, weight_VD: Tensor) -> None:
    """dX = gradient @ weight."""
    if gradient_CV.dtype == total_CD.dtype:
        torch.mm(gradient_CV, weight_VD, out=total_CD)
    elif gradient_CV.is_cuda:
        total_CD.copy_(torch.mm(gradient_CV, weight_VD, out_dtype=total_CD.dtype))
    else:
        total_CD.copy_(torch.mm(gradient_CV, weight_VD))


def add_weight_gradient(total_VD: Tensor, gradient_CV: Tensor, hidden_CD: Tensor, *, first: bool) -> None:
    """dW += gradientᵀ @ hidden, or = where it is the first and `total_VD` holds nothing yet."""
    if gradient_CV.dtype == total_VD.dtype:
        torch.addmm(total_VD, gradient_CV.T, hidden_CD, beta=0 if first else 1, out=total_VD)
        return
    cuda = gradient_CV.is_cuda
    block_rows = max(1, CUDA_BLOCK_BYTES // (4 * hidden_CD.shape[1])) if cuda else BLOCK_ROWS
    for rows in _blocks(len(total_VD), block_rows):
        left_BC = gradient_CV[:, rows].T
        part_BD = torch.mm(left_BC, hidden_CD, out_dtype=total_VD.dtype) if cuda else torch.mm(left_BC, hidden_CD)
        if first:
            total_VD[rows] = part_BD
        else:
            total_VD[rows] += part_BD


def _blocks(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


@contextmanager
def _bfloat16_units() -> Iterator[None]:
    """Lets oneDNN round float32 factors to bfloat16; exact only where they are widened bfloat16 numbers."""
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
