"""Estimates with their standard errors, alone and paired over the same items or documents. No torch.

Items of one cluster are one question asked several times: their deviations are summed up before they are squared
(Liang and Zeger 1986), so that asking it again does not make an error smaller. With clusters of one item each this is
the error without clusters.

A standard error of zero (all items equal) has no z: it is None, and a gate on it fails.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np


def mean_with_error(outcomes_I: Sequence[float], clusters_I: Sequence[Hashable] | None = None) -> dict[str, Any]:
    """Mean of I >= 2 outcomes and its standard error; `clusters` is added where the items are in some, 2 or more."""
    values_I = np.asarray(outcomes_I, dtype=np.float64)
    stderr, counts = _mean_error(values_I, clusters_I)
    return {"value": float(values_I.mean()), "stderr": stderr, **counts}


def paired_mean(
    outcomes_I: Sequence[float], against_I: Sequence[float], clusters_I: Sequence[Hashable] | None = None
) -> dict[str, Any]:
    """Difference of two means over the same I items in the same order; its error is that of the mean difference."""
    differences_I = np.asarray(outcomes_I, dtype=np.float64) - np.asarray(against_I, dtype=np.float64)
    stderr, counts = _mean_error(differences_I, clusters_I)
    return _difference(float(differences_I.mean()), stderr, counts)


def ratio_with_error(bits_D: Sequence[float], bytes_D: Sequence[int]) -> dict[str, Any]:
    """Sum of bits over sum of bytes of D >= 2 documents, with the linearised error of a ratio of sums.

    Documents are the independent units: tokens of one document are not (Cochran, Sampling Techniques, section 6.4).
    """
    value, stderr = _ratio(np.asarray(bits_D, dtype=np.float64), np.asarray(bytes_D, dtype=np.float64))
    return {"value": value, "stderr": stderr, "bytes": int(np.sum(bytes_D)), "documents": len(bytes_D)}


def paired_ratio(bits_D: Sequence[float], against_D: Sequence[float], bytes_D: Sequence[int]) -> dict[str, Any]:
    """Difference of two ratios with the same denominators: the ratio of the differences."""
    differences_D = np.asarray(bits_D, dtype=np.float64) - np.asarray(against_D, dtype=np.float64)
    return _difference(*_ratio(differences_D, np.asarray(bytes_D, dtype=np.float64)), {"n": len(bytes_D)})


def _mean_error(values_I: np.ndarray, clusters_I: Sequence[Hashable] | None) -> tuple[float, dict[str, int]]:
    """The standard error of the mean, and how many items and clusters it is of."""
    count = len(values_I)
    if clusters_I is None:
        return float(values_I.std(ddof=1) / np.sqrt(count)), {"n": count}
    numbers: dict[Hashable, int] = {}
    cluster_I = [numbers.setdefault(cluster, len(numbers)) for cluster in clusters_I]
    sums_C = np.bincount(cluster_I, weights=values_I - values_I.mean())
    clusters = len(sums_C)
    variance = clusters / (clusters - 1) * np.square(sums_C).sum() / count**2
    return float(np.sqrt(variance)), {"n": count, "clusters": clusters}


def _ratio(numerators_D: np.ndarray, denominators_D: np.ndarray) -> tuple[float, float]:
    value = numerators_D.sum() / denominators_D.sum()
    residuals_D = numerators_D - value * denominators_D
    count = len(numerators_D)
    variance = count / (count - 1) * np.square(residuals_D).sum() / denominators_D.sum() ** 2
    return float(value), float(np.sqrt(variance))


def _difference(difference: float, stderr: float, counts: dict[str, int]) -> dict[str, Any]:
    z = difference / stderr if stderr > 0 else None
    return {"difference": difference, "stderr": stderr, "z": z, **counts}
