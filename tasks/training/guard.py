"""Stops a training whose loss or gradient leaves what the steps before were like.

A loss is judged before the weights are updated. A gradient's norm is known only afterwards, since DeepSpeed clips and
steps in one call: that update is in the weights, but in no checkpoint.

All processes see the same numbers and so decide alike; a resumed training decides as the undisturbed one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

from tasks.training.engine import DivergedError

WINDOW = 64
"""Steps whose median is the measure: enough that a bad one does not move it, few enough to follow the descent."""
WARM_UP = 16
"""Steps without judgement: the median of fewer would be one of them."""
LOSS_FLOOR = 0.01
"""nat a token. Below it the median counts as this: a student that has reached its teacher has a KL of rounding errors,
and ten times nothing is nothing."""


class SpikeGuard:
    """Running medians of the losses and gradient norms of the last 64 steps, and a bound on the next ones."""

    def __init__(self, factor: float | None, *, norm_floor: float = 0.0) -> None:
        """`factor` None bounds nothing; what is not finite is refused all the same.

        `norm_floor` takes the place of a smaller median: with clipping, gradients below `max_grad_norm` are what a
        step may be made of, however small the ones before were.
        """
        self._factor = factor
        self._norm_floor = norm_floor
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._norms: deque[float] = deque(maxlen=WINDOW)

    def check_loss(self, loss: float) -> None:
        """Judges a step's loss before the weights are updated. Raises DivergedError."""
        self._check("loss", loss, self._losses, LOSS_FLOOR)

    def check_norm(self, grad_norm: float) -> None:
        """Judges a step's gradient norm before clipping. Raises DivergedError."""
        self._check("gradient's norm", grad_norm, self._norms, self._norm_floor)

    def note(self, loss: float, grad_norm: float) -> None:
        """Takes a judged step into the medians. A step without targets (loss and norm are 0) says nothing."""
        if loss == 0 and grad_norm == 0:
            return
        self._losses.append(loss)
        self._norms.append(grad_norm)

    def forget_norms(self) -> None:
        """Judges norms anew: from here on other parameters learn, whose gradients are of another size."""
        self._norms.clear()

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold; JSON."""
        return {"losses": list(self._losses), "norms": list(self._norms)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` returned."""
        self._losses = deque(state["losses"], maxlen=WINDOW)
        self._norms = deque(state["norms"], maxlen=WINDOW)

    def _check(self, what: str, value: float, before: deque[float], floor: float) -> None:
        if not math.isfinite(value):
            raise DivergedError(f"the {what} is {value}")
        if self._factor is None or len(before) < WARM_UP:
            return
        usual = max(median(before), floor)
        if value > self._factor * usual:
            raise DivergedError(
                f"the {what} is {value:.4g}, {value / usual:.3g} times the median of the {len(before)} steps before "
                f"({usual:.4g}; runtime.spike_factor allows {self._factor:g})"
            )
