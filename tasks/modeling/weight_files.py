"""How weights are cut into files, whoever writes them. No torch, as forecasts count the files too."""

from __future__ import annotations

import math

MAX_FILE_BYTES = 5 * 10**9
"""As transformers shards."""


def num_weight_files(size: float) -> int:
    """Files of a model of `size` bytes."""
    return math.ceil(size / MAX_FILE_BYTES)
