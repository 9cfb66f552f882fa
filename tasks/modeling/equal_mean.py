"""The mean of several estimates with equal weights, as leaderboards count benchmarks. No numpy: flows read it too."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt


def equal_mean(values_E: Sequence[float], errors_E: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error of E estimates; of different items, so that their errors are independent."""
    return sum(values_E) / len(values_E), sqrt(sum(error**2 for error in errors_E)) / len(errors_E)
