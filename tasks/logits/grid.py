"""The warped grid on which log-probabilities are stored: 255 levels, finer where the mass is.

Rounding p_i by δ_i nats costs a KL divergence of about ½ Σ p_i δ_i². For a given number of levels this is least where
δ ∝ 1/√p, that is for equal steps of √p. With S levels for √p = 1 … 0 it is K / (6 S²): 2.4e-4 nats at S = 212 and
K = 64, whatever the distribution. Below p = 3.6e-4 equal steps of ½ nat take over, so that no entry, however
improbable, is off by more than ¼ nat before the position is scaled to its mass.
"""

from __future__ import annotations

import numpy as np

from tasks.logits.positions import Float32, Float64

SQRT_STEPS = 212
KNEE = 208
"""The level at which the steps change: √p = 1 − 208/212. Both kinds of steps are ½ nat wide there."""
LOG_STEP = 0.5
ABSENT = 255
"""The level that stands for no entry."""
LAST = 254
"""e^(2 ln(4/212) − 23) = 4e-14; what is less probable is stored there."""

_KNEE_LOGPROB = 2 * np.log1p(-KNEE / SQRT_STEPS)


def _values() -> Float64:
    levels = np.arange(256.0)
    values = np.where(
        levels <= KNEE,
        2 * np.log1p(-np.minimum(levels, KNEE) / SQRT_STEPS),
        _KNEE_LOGPROB - LOG_STEP * (levels - KNEE),
    )
    values[ABSENT] = -np.inf
    return values


LOGPROB_OF_LEVEL: Float32 = _values().astype(np.float32)
PROBABILITY_OF_LEVEL: Float32 = np.exp(LOGPROB_OF_LEVEL.astype(np.float64)).astype(np.float32)
LEAST_LOGPROB = float(LOGPROB_OF_LEVEL[LAST])


def nearest_levels(logprobs_PK: Float32, stride: int = 1) -> np.ndarray:
    """uint8 multiples of `stride`, or ABSENT for -inf. Descending log-probabilities get ascending levels."""
    with np.errstate(invalid="ignore"):
        by_root = SQRT_STEPS * (1 - np.exp(np.float32(0.5) * logprobs_PK))
        by_log = KNEE + (np.float32(_KNEE_LOGPROB) - logprobs_PK) / np.float32(LOG_STEP)
        levels = np.where(logprobs_PK >= np.float32(_KNEE_LOGPROB), by_root, by_log)
    levels = stride * np.clip(np.rint(levels / np.float32(stride)), 0, LAST // stride)
    return np.where(np.isneginf(logprobs_PK), ABSENT, levels).astype(np.uint8)


def largest_rounding(logprobs: Float32, stride: int = 1) -> Float64:
    """Largest |stored − true| in nats before scaling, at each log-probability: half a step up or down."""
    values = logprobs.astype(np.float64)
    half = 0.5 * stride
    level = np.where(
        values >= _KNEE_LOGPROB,
        SQRT_STEPS * (1 - np.exp(0.5 * np.minimum(values, 0.0))),
        KNEE + (_KNEE_LOGPROB - values) / LOG_STEP,
    )

    def value(at: Float64 | np.float64) -> Float64:
        return np.where(
            at <= KNEE,
            2 * np.log1p(-np.minimum(at, KNEE) / SQRT_STEPS),
            _KNEE_LOGPROB - LOG_STEP * (at - KNEE),
        )

    top = LAST // stride * stride
    down = values - value(np.minimum(level + half, top))
    return np.maximum(np.maximum(down, value(np.maximum(level - half, 0.0)) - values), value(np.float64(top)) - values)
