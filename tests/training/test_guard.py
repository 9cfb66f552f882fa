"""What stops a training, and what does not."""

from __future__ import annotations

import json
import math

import pytest

from tasks.training.engine import DivergedError
from tasks.training.guard import WARM_UP, WINDOW, SpikeGuard


def fed(guard: SpikeGuard, losses: list[float], norm: float = 2.0) -> SpikeGuard:
    for loss in losses:
        guard.check_loss(loss)
        guard.check_norm(norm)
        guard.note(loss, norm)
    return guard


def test_a_loss_or_norm_far_above_the_median_stops() -> None:
    guard = fed(SpikeGuard(10.0), [3.0] * WARM_UP)
    guard.check_loss(29.9)
    with pytest.raises(DivergedError, match=r"the loss is 30.1, 10 times the median of the 16 steps before \(3; "):
        guard.check_loss(30.1)
    guard.check_norm(19.9)
    with pytest.raises(DivergedError, match=r"gradient's norm is 20\.1"):
        guard.check_norm(20.1)


def test_the_median_follows_and_one_bad_step_does_not_move_it() -> None:
    guard = fed(SpikeGuard(10.0), [8.0] * WINDOW + [25.0] + [1.0] * (WINDOW // 2 + 1))
    with pytest.raises(DivergedError, match=r"median of the 64 steps before \(1;"):
        guard.check_loss(11.0)


def test_the_first_steps_are_not_judged_and_no_factor_judges_none() -> None:
    fed(SpikeGuard(10.0), [1.0] * (WARM_UP - 1)).check_loss(1000.0)
    fed(SpikeGuard(None), [1.0] * WINDOW).check_loss(1000.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_always_stops(value: float) -> None:
    for guard in (SpikeGuard(10.0), SpikeGuard(None)):
        with pytest.raises(DivergedError, match=f"the loss is {value}"):
            guard.check_loss(value)
        with pytest.raises(DivergedError, match=f"norm is {value}"):
            guard.check_norm(value)


def test_steps_without_targets_leave_the_median_alone() -> None:
    guard = fed(SpikeGuard(10.0), [3.0] * WARM_UP)
    for _ in range(WINDOW):
        guard.check_loss(0.0)
        guard.note(0.0, 0.0)
    guard.check_loss(29.0)
    with pytest.raises(DivergedError):
        guard.check_loss(31.0)


def test_rounding_errors_are_no_spikes() -> None:
    """A student at its teacher: KL within ±1e-6, gradients that clipping would not touch."""
    guard = SpikeGuard(10.0, norm_floor=1.0)
    fed(guard, [1e-7, -1e-6] * WARM_UP, norm=1e-5)
    guard.check_loss(0.09)
    guard.check_norm(9.9)
    with pytest.raises(DivergedError):
        guard.check_loss(0.11)
    with pytest.raises(DivergedError):
        guard.check_norm(10.1)


def test_other_parameters_have_other_norms() -> None:
    guard = fed(SpikeGuard(10.0), [3.0] * WARM_UP, norm=0.01)
    guard.forget_norms()
    guard.check_norm(5.0)
    with pytest.raises(DivergedError):
        guard.check_loss(31.0)


def test_a_resumed_guard_decides_alike() -> None:
    losses = [3.0 + math.sin(step) for step in range(100)]
    undisturbed = fed(SpikeGuard(10.0), losses)
    resumed = SpikeGuard(10.0)
    resumed.restore(json.loads(json.dumps(fed(SpikeGuard(10.0), losses[:41]).state())))
    assert fed(resumed, losses[41:]).state() == undisturbed.state()
