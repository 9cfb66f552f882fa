"""How many forward passes the steps of a training take, and how many tokens a device computes in them.

Documents are packed to rows of L tokens, and a pass of at most M tokens holds ⌊M / L⌋ of them, but at least one:
C tokens. The loader deals whole passes (tasks/training/loader.py): a step of S tokens, padding counted, takes N devices

    R = ⌈S / C / N⌉ rounds

in each of which every device makes a pass. A device for which the last round has none repeats a pass of its own
without targets, so that a step takes as long as R full passes, however little is left for the last round; a step that
fits into one pass takes as long as that pass. A lone device repeats nothing and computes S. The sizes of steps differ,
so R is the mean of the rounded values over a normal distribution, not the rounded mean.
"""

from __future__ import annotations

import math

from tasks.artifacts.frozen import Frozen

_FAR = 8.0
"""Standard deviations beyond which there is nothing."""


class StepPasses(Frozen):
    """Of one step, on average."""

    rounds: float
    """Passes of each device."""
    tokens: float
    """That each device computes, padding and repeated passes included."""


def pass_tokens(micro_batch_tokens: int, row_tokens: float) -> float:
    """C: tokens of a full pass whose packed rows are as long as `row_tokens`."""
    return max(1, micro_batch_tokens // row_tokens) * row_tokens


def step_passes(*, tokens: float, deviation: float, full: float, devices: int) -> StepPasses:
    """Passes of a step.

    Args:
        tokens: S on average.
        deviation: standard deviation of S.
        full: C.
        devices: N.
    """
    if tokens <= 0:
        return StepPasses(rounds=0, tokens=0)
    rounds = _mean_ceiling(tokens / (full * devices), deviation / (full * devices))
    return StepPasses(rounds=rounds, tokens=tokens if devices == 1 else rounds * min(full, tokens))


def _mean_ceiling(mean: float, deviation: float) -> float:
    """Mean of ⌈x⌉, which is at least 1, of a normally distributed x: Σ over k ≥ 0 of the probability of x > k."""
    if not deviation:
        return max(1.0, math.ceil(mean))
    last = math.ceil(mean + _FAR * deviation)
    above = (0.5 * math.erfc((k - mean) / (deviation * math.sqrt(2))) for k in range(1, last + 1))
    return 1.0 + sum(above)
