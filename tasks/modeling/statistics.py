"""Estimates with their standard errors, alone and paired over the same items or documents. No torch.

A standard error of zero (all items equal) has no z: it is None, and a gate on it fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def mean_with_error(outcomes_I: Sequence[float]) -> dict[str, Any]:
    """Mean of I >= 2 outcomes and its standard error."""
    values_I = np.asarray(outcomes_I, dtype=np.float64)
    return {"value": float(values_I.mean()), "stderr": _mean_error(values_I), "n": len(values_I)}


def paired_mean(outcomes_I: Sequence[float], against_I: Sequence[float]) -> dict[str, Any]:
    """Difference of two means over the same I items in the same order; its error is that of the mean difference."""
    differences_I = np.asarray(outcomes_I, dtype=np.float64) - np.asarray(against_I, dtype=np.float64)
    return _difference(float(differences_I.mean()), _mean_error(differences_I), len(differences_I))


def ratio_with_error(bits_D: Sequence[float], bytes_D: Sequence[int]) -> dict[str, Any]:
    """Sum of bits over sum of bytes of D >= 2 documents, with the linearised error of a ratio of sums.

    Documents are the independent units: tokens of one document are not (Cochran, Sampling Techniques, section 6.4).
    """
    value, stderr = _ratio(np.asarray(bits_D, dtype=np.float64), np.asarray(bytes_D, dtype=np.float64))
    return {"value": value, "stderr": stderr, "bytes": int(np.sum(bytes_D)), "documents": len(bytes_D)}


def paired_ratio(bits_D: Sequence[float], against_D: Sequence[float], bytes_D: Sequence[int]) -> dict[str, Any]:
    """Difference of two ratios with the same denominators: the ratio of the differences."""
    differences_D = np.asarray(bits_D, dtype=np.float64) - np.asarray(against_D, dtype=np.float64)
    return _difference(*_ratio(differences_D, np.asarray(bytes_D, dtype=np.float64)), len(bytes_D))


def _mean_error(values_I: np.ndarray) -> float:
    return float(values_I.std(ddof=1) / np.sqrt(len(values_I)))


def _ratio(numerators_D: np.ndarray, denominators_D: np.ndarray) -> tuple[float, float]:
    value = numerators_D.sum() / denominators_D.sum()
    residuals_D = numerators_D - value * denominators_D
    count = len(numerators_D)
    variance = count / (count - 1) * np.square(residuals_D).sum() / denominators_D.sum() ** 2
    return float(value), float(np.sqrt(variance))


def _difference(difference: float, stderr: float, count: int) -> dict[str, Any]:
    z = difference / stderr if stderr > 0 else None
    return {"difference": difference, "stderr": stderr, "z": z, "n": count}
