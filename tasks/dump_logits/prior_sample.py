"""The rows on which the prior is counted: a pure function of the corpus and the recipe."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def sampled_rows(lengths_N: npt.NDArray[np.int64], num_tokens: int) -> npt.NDArray[np.int64]:
    """Ascending indices of rows at even distances that have `num_tokens` tokens or just more; all if there are fewer.

    Rows are visited in bit-reversed order (first, middle, quarters, eighths …), so that wherever it ends the sample is
    spread over the corpus: sources usually stand one after the other in it.
    """
    num_rows = len(lengths_N)
    num_bits = max(1, int(num_rows - 1).bit_length())
    order = np.zeros(2**num_bits, np.int64)
    for bit in range(num_bits):
        order |= ((np.arange(2**num_bits) >> bit) & 1) << (num_bits - 1 - bit)
    order = order[order < num_rows]
    needed = int(np.searchsorted(np.cumsum(lengths_N[order]), num_tokens)) + 1
    return np.sort(order[:needed])
