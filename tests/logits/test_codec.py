"""What the codec promises of every distribution, not only of the average one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tasks.logits.codec import DocumentCodec, max_error_nats
from tasks.logits.grid import LEAST_LOGPROB, LOGPROB_OF_LEVEL, largest_rounding, nearest_levels
from tasks.logits.positions import MASS_TOLERANCE, Positions, mass
from tasks.logits.prior import Prior
from tasks.logits.schema import LogitFormat, TopKSupport
from tests.logits.conftest import make_format, make_prior

K, V = 8, 300
VALUES = ["warped", "float16", "float32"]


def form(values: str, vocab_size: int = V, num_kept: int = K, **fields: object) -> LogitFormat:
    support = {"kind": "top_k", "num_kept": num_kept}
    return make_format(values, **{"temperatures": (), "vocab_size": vocab_size, "support": support, **fields})


def codec_of(values: str, vocab_size: int = V, num_kept: int = K, **fields: object) -> DocumentCodec:
    return DocumentCodec(form(values, vocab_size, num_kept, **fields), make_prior(vocab_size))


def there_and_back(codec: DocumentCodec, positions: Positions, vocab_size: int = V) -> Positions:
    """Through the bytes, with rows padded as a store pads them."""
    tokens_T = np.random.default_rng(9).integers(0, vocab_size, len(positions) + 1)
    mask_T = np.random.default_rng(8).integers(0, 2, len(tokens_T))
    rows = codec.encode(tokens_T, mask_T, positions)
    width = max(len(row) for row in rows) + 7
    padded_RL = np.stack([np.pad(row, (0, width - len(row))) for row in rows])
    document = codec.decode(padded_RL, len(tokens_T))
    np.testing.assert_array_equal(document.input_ids_T, tokens_T)
    np.testing.assert_array_equal(document.loss_mask_T, mask_T)
    return document.positions


def by_id(positions: Positions) -> tuple[np.ndarray, np.ndarray]:
    """Ids ascending with their log-probabilities: equal values may come back in another order."""
    order_PK = np.argsort(positions.topk_ids_PK, axis=1, kind="stable")
    return (
        np.take_along_axis(positions.topk_ids_PK, order_PK, 1),
        np.take_along_axis(positions.topk_logprobs_PK, order_PK, 1),
    )


def truncated(logits_PV: np.ndarray, num_kept: int = K) -> Positions:
    """Sort, cut and sum the rest, in float64."""
    top_P1 = logits_PV.max(1, keepdims=True)
    logprobs_PV = logits_PV - top_P1 - np.log(np.exp(logits_PV - top_P1).sum(1, keepdims=True))
    order_PV = np.argsort(-logits_PV, axis=1, kind="stable")
    sorted_PV = np.take_along_axis(logprobs_PV, order_PV, 1)
    values_PK = sorted_PV[:, :num_kept].astype(np.float32)
    with np.errstate(divide="ignore"):
        tail_P = np.log(np.exp(sorted_PV[:, num_kept:]).sum(1)).astype(np.float32)
    none_PM = np.empty((len(logits_PV), 0), np.float32)
    ids_PK = np.where(np.isneginf(values_PK), -1, order_PV[:, :num_kept]).astype(np.int32)
    gold_P = values_PK[:, 0].copy()
    return Positions(ids_PK, values_PK, tail_P, gold_P, none_PM, none_PM, none_PM.astype(np.uint16))


def peaked() -> np.ndarray:
    """Leads of 1 to 200 nats: the tail's probability falls out of float32 on the way."""
    logits = np.random.default_rng(1).normal(0, 1, (200, V))
    logits[:, 17] = np.arange(1, 201)
    return logits


def few() -> np.ndarray:
    """0 to K − 1 finite entries beside the first one."""
    logits = np.full((K, V), -np.inf)
    for row in range(K):
        logits[row, 5 : 6 + row] = np.random.default_rng(row).normal(0, 2, row + 1)
    return logits


CASES = {
    "peaked": peaked(),
    "flat": np.zeros((3, V)),
    "tied": np.repeat(np.random.default_rng(2).integers(0, 4, (50, V // 3)).astype(float), 3, axis=1),
    "minus infinity": np.where(np.random.default_rng(3).random((50, V)) < 0.9, -np.inf, 1.0) + np.eye(50, V),
    "fewer than K": few(),
    "ordinary": np.random.default_rng(4).normal(0, 4, (2000, V)),
    "far out": np.random.default_rng(5).normal(0, 1, (20, V)) * 30000,
}


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("case", CASES)
def test_decoded_is_descending_has_no_more_mass_than_one_and_errs_within_the_bound(case: str, values: str) -> None:
    positions = truncated(CASES[case])
    codec = codec_of(values)
    decoded = there_and_back(codec, positions)
    assert (decoded.topk_logprobs_PK[:, 1:] <= decoded.topk_logprobs_PK[:, :-1]).all()
    total_P = mass(decoded.topk_logprobs_PK, decoded.tail_logprob_P)
    assert total_P.max() <= 1 + MASS_TOLERANCE
    (ids_PK, true_PK), (got_ids_PK, got_PK) = by_id(positions), by_id(decoded)
    np.testing.assert_array_equal(got_ids_PK, ids_PK)
    np.testing.assert_array_equal(np.isneginf(got_PK), ids_PK < 0)
    kept_P1 = np.exp(true_PK.astype(np.float64)).sum(1, keepdims=True)
    # Beyond the end of the grid or of float16 a value stays there, where its probability is 0 either way.
    least = {"warped": LEAST_LOGPROB, "float16": -65504.0, "float32": -np.inf}[values]
    true_PK = np.where(ids_PK < 0, -np.inf, np.maximum(true_PK, np.float32(least)))
    bound_PK = codec.error_bound(np.where(ids_PK < 0, 0, true_PK), np.minimum(kept_P1, 1))
    with np.errstate(invalid="ignore"):
        error_PK = np.abs(got_PK.astype(np.float64) - true_PK)
    assert (error_PK[ids_PK >= 0] <= bound_PK[ids_PK >= 0]).all()
    np.testing.assert_allclose(decoded.gold_logprob_P, positions.gold_logprob_P, atol=codec.gold_error)
    finite_P = np.isfinite(positions.tail_logprob_P)
    np.testing.assert_array_equal(np.isfinite(decoded.tail_logprob_P), finite_P)
    near_P = finite_P & (positions.tail_logprob_P > -127)
    tolerance = 0.5 / 256 + 1e-5 if values == "warped" else 2e-6
    np.testing.assert_allclose(
        decoded.tail_logprob_P[near_P], positions.tail_logprob_P[near_P], rtol=1e-6, atol=tolerance
    )
    if values == "warped":
        assert total_P.min() >= 1 - 1e-5


def test_the_grid_rounds_to_its_nearest_level_and_no_entry_by_more_than_its_bound() -> None:
    logprobs = np.linspace(LEAST_LOGPROB, 0, 500_001, dtype=np.float32)
    levels = nearest_levels(logprobs)
    error = np.abs(LOGPROB_OF_LEVEL[levels].astype(np.float64) - logprobs)
    assert (error <= largest_rounding(logprobs) + 1e-5).all()
    assert (np.diff(levels.astype(int)) <= 0).all()
    assert set(levels.tolist()) == set(range(255))
    assert error[logprobs < -8].max() <= 0.2501
    root_error = np.abs(np.exp(LOGPROB_OF_LEVEL[levels].astype(np.float64) / 2) - np.exp(logprobs / 2.0))
    assert root_error[logprobs > -7.9].max() <= 0.5 / 212 + 1e-6
    assert max_error_nats("warped", TopKSupport()) >= error.max() - 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_rounding_costs_no_more_kl_than_stated(seed: int) -> None:
    """K / (6 S²) = 2.4e-4 nats at K = 64, on distributions of very different entropy."""
    for scale in (0.5, 2.0, 6.0):
        positions = truncated(np.random.default_rng(seed).gumbel(0, scale, (500, 2000)), 64)
        decoded = there_and_back(codec_of("warped", 2000, 64), positions, 2000)
        (_, true_PK), (_, got_PK) = by_id(positions), by_id(decoded)
        kl_P = (np.exp(true_PK.astype(np.float64)) * (true_PK.astype(np.float64) - got_PK)).sum(1)
        tail_P = positions.tail_logprob_P.astype(np.float64)
        kl_P += np.exp(tail_P) * (tail_P - decoded.tail_logprob_P)
        assert kl_P.min() > -1e-6
        assert kl_P.mean() <= 2.5e-4
        assert kl_P.max() <= 1.5e-3


def test_whole_vocabulary_kept_has_no_tail_and_mass_one() -> None:
    positions = truncated(np.random.default_rng(6).normal(0, 1, (100, V)), V)
    assert np.isneginf(positions.tail_logprob_P).all()
    for values, lost in (("float32", 1e-5), ("float16", 5e-3), ("warped", 1e-5)):
        decoded = there_and_back(codec_of(values, num_kept=V), positions)
        assert np.isneginf(decoded.tail_logprob_P).all()
        total = mass(decoded.topk_logprobs_PK, decoded.tail_logprob_P)
        assert total.max() <= 1 + MASS_TOLERANCE
        assert total.min() >= 1 - lost


@pytest.mark.parametrize("vocab_size", [1, 2, 256, 16384, 65536, 65537, 152064, 2**20])
def test_ids_of_any_vocabulary_come_back(vocab_size: int) -> None:
    """Places on both sides of every byte boundary, and the last one."""
    num_kept = min(5, vocab_size)
    generator = np.random.default_rng(vocab_size)
    edges = [place for bits in (6, 8, 14, 16, 18) for place in (2**bits - 1, 2**bits) if place < vocab_size]
    prior = make_prior(vocab_size)
    ids_PK = np.stack([generator.choice(vocab_size, num_kept, replace=False) for _ in range(50)]).astype(np.int32)
    for position, place in enumerate([*edges, vocab_size - 1]):
        ids_PK[position] = prior.id_of_place_V[(place - np.arange(num_kept)) % vocab_size]
    values_PK = np.sort(-generator.exponential(3, ids_PK.shape), axis=1)[:, ::-1].astype(np.float32) - 2
    none_PM = np.empty((50, 0), np.float32)
    tail_P = np.log1p(-np.exp(values_PK.astype(np.float64)).sum(1)).astype(np.float32)
    positions = Positions(ids_PK, values_PK, tail_P, tail_P, none_PM, none_PM, none_PM.astype(np.uint16))
    for values in VALUES:
        decoded = there_and_back(codec_of(values, vocab_size, num_kept), positions, vocab_size)
        np.testing.assert_array_equal(np.sort(decoded.topk_ids_PK, 1), np.sort(ids_PK, 1))


@pytest.mark.parametrize("values", VALUES)
def test_ragged_supports_keep_what_each_position_has(values: str) -> None:
    """adaptive, and sampled with its counts; positions of 0, 1 and K entries among them."""
    generator = np.random.default_rng(10)
    positions = truncated(generator.normal(0, 3, (200, V)), 20)
    num_kept_P = generator.integers(1, 21, 200)
    num_kept_P[:3] = (20, 1, 20)
    left_out_PK = np.arange(20) >= num_kept_P[:, None]
    tail_P = np.log1p(-np.exp(np.where(left_out_PK, -np.inf, positions.topk_logprobs_PK).astype(np.float64)).sum(1))
    counts_PK = np.where(left_out_PK, 0, generator.integers(1, 300, left_out_PK.shape)).astype(np.uint16)
    given: dict[str, Any] = {
        "topk_ids_PK": np.where(left_out_PK, -1, positions.topk_ids_PK).astype(np.int32),
        "topk_logprobs_PK": np.where(left_out_PK, -np.inf, positions.topk_logprobs_PK).astype(np.float32),
        "tail_logprob_P": tail_P.astype(np.float32),
    }
    for support in ({"kind": "adaptive", "max_kept": 20}, {"kind": "sampled", "num_draws": 20}):
        counted = support["kind"] == "sampled"
        whole = Positions(**{**vars(positions), **given, "counts_PK": counts_PK if counted else positions.counts_PK})
        decoded = there_and_back(codec_of(values, support=support), whole)
        (ids_PK, true_PK), (got_ids_PK, got_PK) = by_id(whole), by_id(decoded)
        np.testing.assert_array_equal(got_ids_PK, ids_PK)
        inside_PK = ids_PK >= 0
        bound = codec_of(values, support=support).error_bound(true_PK[inside_PK], 0.05)
        assert (np.abs(got_PK[inside_PK].astype(np.float64) - true_PK[inside_PK]) <= bound).all()
        if counted:
            order_PK = np.argsort(whole.topk_ids_PK, axis=1, kind="stable")
            got_order_PK = np.argsort(decoded.topk_ids_PK, axis=1, kind="stable")
            np.testing.assert_array_equal(
                np.take_along_axis(decoded.counts_PK, got_order_PK, 1), np.take_along_axis(counts_PK, order_PK, 1)
            )
        else:
            assert decoded.counts_PK.shape == (200, 0)


def test_temperatures_come_back_within_their_unit() -> None:
    positions = truncated(np.random.default_rng(11).normal(0, 4, (300, V)))
    lse_PM = np.random.default_rng(12).uniform(-60, 60, (300, 2)).astype(np.float32)
    tail_PM = -np.random.default_rng(13).exponential(5, (300, 2)).astype(np.float32)
    tail_PM[7, 1] = -np.inf
    given = Positions(**{**vars(positions), "tempered_lse_PM": lse_PM, "tempered_tail_PM": tail_PM})
    decoded = there_and_back(codec_of("warped", temperatures=(0.5, 2.0)), given)
    np.testing.assert_allclose(decoded.tempered_lse_PM, lse_PM, atol=0.5 / 512 + 1e-5)
    np.testing.assert_allclose(decoded.tempered_tail_PM, tail_PM, atol=0.5 / 256 + 1e-5)


def test_equal_values_cost_nothing_but_their_set() -> None:
    """The order among equal values is not stored: 64 equal entries in any order are the same bytes."""
    generator = np.random.default_rng(14)
    ids = generator.choice(V, 64, replace=False).astype(np.int32)
    value = np.full((1, 64), -np.log(128), np.float32)
    none_PM = np.empty((1, 0), np.float32)
    half = np.log(np.array([0.5], np.float32))
    codec = codec_of("warped", num_kept=64)
    encoded = [
        codec.encode(
            [1, 2], [0, 1], Positions(order[None], value, half, half, none_PM, none_PM, none_PM.astype(np.uint16))
        )
        for order in (ids, ids[::-1], np.sort(ids))
    ]
    for other in encoded[1:]:
        for row, first in zip(other, encoded[0], strict=True):
            np.testing.assert_array_equal(row, first)


def test_a_row_that_is_too_short_or_a_place_outside_the_vocabulary_is_refused() -> None:
    positions = truncated(CASES["ordinary"][:5])
    codec = codec_of("warped")
    rows = codec.encode(np.arange(6), np.ones(6), positions)
    with pytest.raises(ValueError, match="should hold"):
        codec.decode([rows[0], rows[1][:-1], rows[2]], 6)
    with pytest.raises(ValueError, match="should hold"):
        codec.decode(rows, 60)
    far = rows[0] & 192 | 62
    with pytest.raises(ValueError, match="in a vocabulary of 300"):
        codec.decode([far, *rows[1:]], 6)
    with pytest.raises(ValueError, match="not the one that the store was written with"):
        DocumentCodec(form("warped"), Prior.identity(V))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.topk_logprobs_PK.__setitem__((3, 2), np.nan), "position 3 is not a number"),
        (lambda p: p.gold_logprob_P.__setitem__(1, np.nan), "position 1 has a gold"),
        (lambda p: p.topk_logprobs_PK.__setitem__((2, 0), -50), "position 2 is not in descending order"),
        (lambda p: p.topk_ids_PK.__setitem__((4, 7), -1), "position 4 has an id without"),
        (lambda p: p.tail_logprob_P.__setitem__(5, 0.0), "position 5 has more mass"),
    ],
)
def test_what_is_no_distribution_is_refused_with_its_place(change: object, message: str) -> None:
    positions = truncated(np.random.default_rng(7).normal(0, 1, (10, V)))
    change(positions)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        codec_of("float16").encode(np.zeros(11), np.zeros(11), positions)
