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


def test_questions_asked_several_times_are_no_more_questions() -> None:
    """Against the cluster-robust covariance of a regression on a constant, (X'X)^-1 X'ee'X (X'X)^-1 G/(G-1)."""
    rng = np.random.default_rng(4)
    once = rng.random(60)
    times = rng.integers(1, 4, 60)
    clusters = np.repeat(np.arange(60), times)
    one, other = np.repeat(once, times), rng.random(len(clusters))
    shuffled = rng.permutation(len(clusters))
    for values, found in (
        (one, mean_with_error(one[shuffled], [f"r{each}" for each in clusters[shuffled]])),
        (one - other, paired_mean(one, other, clusters.tolist())),
    ):
        residuals = values - values.mean()
        same = clusters[:, None] == clusters[None, :]
        meat = (np.outer(residuals, residuals) * same).sum()
        assert found["stderr"] == pytest.approx(np.sqrt(60 / 59 * meat) / len(values), rel=1e-12)
        assert (found["n"], found["clusters"]) == (len(values), 60)
    # Three times the same answers tell nothing new.
    twenty = once[:20]
    assert mean_with_error(np.tile(twenty, 3), list(range(20)) * 3)["stderr"] == pytest.approx(
        mean_with_error(twenty)["stderr"], rel=1e-12
    )
    alone = paired_mean(one, other, list(range(len(one))))
    assert alone["stderr"] == pytest.approx(paired_mean(one, other)["stderr"], rel=1e-12)


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
