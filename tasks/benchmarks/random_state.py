"""Loading under fixed seeds: some tasks of the harness shuffle with the global generators while they are loaded."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

_SEED, _NUMPY_SEED = 0, 1234
"""Those that the lm-eval command sets unless told otherwise: a task loaded by itself is in its order here, too."""


@contextmanager
def fixed_random_state() -> Iterator[None]:
    """In this block the global generators of `random` and numpy start from fixed seeds; afterwards they go on."""
    python, arrays = random.getstate(), np.random.get_state()
    random.seed(_SEED)
    np.random.seed(_NUMPY_SEED)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
