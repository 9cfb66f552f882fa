"""Draws depend on seed, row and position, and on nothing else."""

from __future__ import annotations

import numpy as np

from tasks.dump_logits.sampling import draws_of


def test_draws_are_uniform_and_belong_to_seed_and_row() -> None:
    draws_PN = draws_of(0, "ab" * 32, 2000, 50)
    assert draws_PN.shape == (2000, 50)
    assert draws_PN.dtype == np.float64
    assert draws_PN.min() >= 0
    assert draws_PN.max() < 1
    counts = np.histogram(draws_PN, bins=20, range=(0, 1))[0]
    # χ² with 19 degrees of freedom; 43.8 is exceeded once in a thousand.
    assert ((counts - 5000) ** 2 / 5000).sum() < 43.8
    np.testing.assert_array_equal(draws_PN, draws_of(0, "ab" * 32, 2000, 50))
    for other in (draws_of(1, "ab" * 32, 2000, 50), draws_of(0, "cd" * 32, 2000, 50)):
        assert abs(np.corrcoef(draws_PN.ravel(), other.ravel())[0, 1]) < 0.02


def test_a_position_gets_its_draws_however_many_follow() -> None:
    np.testing.assert_array_equal(draws_of(7, "ab" * 32, 300, 50)[:11], draws_of(7, "ab" * 32, 11, 50))


def test_draws_stay_what_they_are() -> None:
    """A resumed dump draws as the interrupted one did, on whatever version of numpy."""
    assert draws_of(0, "00" * 32, 1, 2)[0].tolist() == [0.5540818420074546, 0.8728138727230635]
