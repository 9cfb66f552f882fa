import numpy as np
import pytest

from tasks.modeling.statistics import mean_with_error, paired_mean, paired_ratio, ratio_with_error


def test_paired_error_is_that_of_the_differences_not_of_two_independent_means() -> None:
    rng = np.random.default_rng(0)
    difficulty = rng.random(400)
    one = (rng.random(400) * 0.3 + difficulty < 0.8).astype(float)
    other = (rng.random(400) * 0.3 + difficulty < 0.7).astype(float)
    pair = paired_mean(one, other)
    differences = one - other
    assert pair["difference"] == pytest.approx(one.mean() - other.mean())
    assert pair["stderr"] == pytest.approx(np.sqrt(np.var(differences, ddof=1) / 400))
    assert pair["z"] == pytest.approx(pair["difference"] / pair["stderr"])
    independent = np.hypot(mean_with_error(one)["stderr"], mean_with_error(other)["stderr"])
    assert pair["stderr"] < 0.8 * independent


def test_equal_outcomes_have_no_z() -> None:
    pair = paired_mean([1, 0, 1], [1, 0, 1])
    assert (pair["difference"], pair["stderr"], pair["z"]) == (0, 0, None)


def test_ratio_error_matches_the_spread_over_resampled_documents() -> None:
    rng = np.random.default_rng(1)
    sizes = rng.integers(50, 5000, 300)
    bits = sizes * rng.normal(2.0, 0.3, 300)
    ratio = ratio_with_error(bits, sizes.tolist())
    assert ratio["value"] == pytest.approx(bits.sum() / sizes.sum())
    assert (ratio["bytes"], ratio["documents"]) == (sizes.sum(), 300)
    picks = rng.integers(0, 300, (4000, 300))
    resampled = bits[picks].sum(axis=1) / sizes[picks].sum(axis=1)
    assert ratio["stderr"] == pytest.approx(resampled.std(), rel=0.1)


def test_paired_ratio_is_the_difference_of_the_ratios() -> None:
    rng = np.random.default_rng(2)
    sizes = rng.integers(50, 500, 100).tolist()
    one, other = rng.random(100) * 900, rng.random(100) * 900
    pair = paired_ratio(one, other, sizes)
    difference = ratio_with_error(one, sizes)["value"] - ratio_with_error(other, sizes)["value"]
    assert pair["difference"] == pytest.approx(difference)
    residuals = (one - other) - difference * np.array(sizes)
    by_hand = np.sqrt(100 / 99 * (residuals**2).sum()) / sum(sizes)
    assert pair["stderr"] == pytest.approx(by_hand)
