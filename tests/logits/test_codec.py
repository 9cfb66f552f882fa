"""What the codec promises of every distribution, not only of the average one."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.logits.codec import MASS_TOLERANCE, Positions, codec_of, id_dtype, mass
from tasks.logits.schema import LogitFormat

K, V = 8, 300


def form(value_dtype: str, vocab_size: int = V, num_kept: int = K) -> LogitFormat:
    return LogitFormat.model_validate(
        {"value_dtype": value_dtype, "vocab_size": vocab_size, "num_kept": num_kept}
        | {"tokenizer_digest": "", "teacher_digest": "", "corpus_digest": ""}
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
    return Positions(ids_PK, values_PK, tail_P, values_PK[:, 0].copy(), none_PM, none_PM)


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


@pytest.mark.parametrize("value_dtype", ["float16", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_decoded_is_descending_has_no_more_mass_than_one_and_errs_within_the_bound(case: str, value_dtype: str) -> None:
    positions = truncated(CASES[case])
    codec = codec_of(form(value_dtype))
    decoded = codec.decode(codec.encode(positions))
    assert (decoded.topk_logprobs_PK[:, 1:] <= decoded.topk_logprobs_PK[:, :-1]).all()
    assert mass(decoded.topk_logprobs_PK, decoded.tail_logprob_P).max() <= 1 + MASS_TOLERANCE
    np.testing.assert_array_equal(decoded.topk_ids_PK, positions.topk_ids_PK)
    np.testing.assert_array_equal(decoded.gold_logprob_P, positions.gold_logprob_P)
    empty_PK = positions.topk_ids_PK < 0
    assert np.isneginf(decoded.topk_logprobs_PK[empty_PK]).all()
    true = positions.topk_logprobs_PK[~empty_PK]
    # Beyond the end of float16 a value stays at -65504, where its probability is 0 either way.
    true = np.maximum(true, np.finfo(value_dtype).min)
    error = np.abs(decoded.topk_logprobs_PK[~empty_PK].astype(np.float64) - true)
    assert (error <= codec.error_bound(true)).all()
    finite = np.isfinite(positions.tail_logprob_P)
    np.testing.assert_array_equal(np.isfinite(decoded.tail_logprob_P), finite)
    np.testing.assert_allclose(decoded.tail_logprob_P[finite], positions.tail_logprob_P[finite], rtol=1e-6, atol=2e-6)


def test_whole_vocabulary_kept_has_no_tail_and_mass_one() -> None:
    positions = truncated(np.random.default_rng(6).normal(0, 1, (100, V)), V)
    assert np.isneginf(positions.tail_logprob_P).all()
    for value_dtype, lost in (("float32", 1e-5), ("float16", 5e-3)):
        codec = codec_of(form(value_dtype, num_kept=V))
        decoded = codec.decode(codec.encode(positions))
        assert np.isneginf(decoded.tail_logprob_P).all()
        total = mass(decoded.topk_logprobs_PK, decoded.tail_logprob_P)
        assert total.max() <= 1 + MASS_TOLERANCE
        assert total.min() >= 1 - lost


def test_ids_fit_with_one_value_to_spare_for_no_entry() -> None:
    assert id_dtype(65535) is np.uint16
    assert id_dtype(65536) is np.uint32
    for vocab_size in (65535, 65536, 152064):
        positions = Positions(
            np.array([[vocab_size - 1, -1]], np.int32),
            np.array([[-0.5, -np.inf]], np.float32),
            np.array([-1.0], np.float32),
            np.array([-0.5], np.float32),
            np.empty((1, 0), np.float32),
            np.empty((1, 0), np.float32),
        )
        codec = codec_of(form("float32", vocab_size, 2))
        assert codec.decode(codec.encode(positions)).topk_ids_PK.tolist() == [[vocab_size - 1, -1]]


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
        codec_of(form("float16")).encode(positions)
