"""Each support against the definition in float64, on the distributions that break shortcuts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tasks.dump_logits.head import Fill, Float32Head
from tasks.dump_logits.scan import Scan
from tasks.dump_logits.truncate import Truncation, truncated
from tasks.logits.positions import Positions, check
from tasks.logits.schema import AdaptiveSupport, SampledSupport, Support, TopKSupport
from tests.dump_logits.truncation import truncate

CLOSE = {"rtol": 1e-6, "atol": 3e-6}
VOCAB_SIZE = 1000


def logits(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    normal_CV = torch.randn(24, VOCAB_SIZE, generator=generator)
    return {
        "ordinary": normal_CV * 3,
        "flat": torch.zeros(24, VOCAB_SIZE),
        "tied": (normal_CV * 2).round(),
        "peaked": normal_CV + 300.0 * torch.eye(24, VOCAB_SIZE),
        "few": torch.where(torch.rand(24, VOCAB_SIZE, generator=generator) < 0.995, -torch.inf, normal_CV).index_fill(
            1, torch.tensor([500]), 1.0
        ),
        "large": normal_CV * 3 + 1e4,
    }[kind]


def filled(logits_CV: Tensor) -> Fill:
    def fill(first: int, out_NC: Tensor) -> None:
        out_NC.copy_(logits_CV[:, first : first + len(out_NC)].T)

    return fill


def cut(logits_CV: Tensor, support: Support, temperatures: tuple[float, ...] = (), **options: Any) -> Positions:
    gold_C = torch.arange(len(logits_CV)) * 7
    found = truncate(filled(logits_CV), logits_CV.shape[1], gold_C, support, temperatures, **options)
    check(found)
    return found


def matches_definition(found: Positions, logits_CV: Tensor, temperatures: tuple[float, ...]) -> None:
    """All numbers follow from the ids and the logits; the entries are in order and the mass adds up to 1."""
    logprobs_CV = logits_CV.double().log_softmax(1)
    ids_CK = torch.from_numpy(found.topk_ids_PK).long()
    kept_CV = torch.zeros_like(logprobs_CV, dtype=torch.bool).scatter_(1, ids_CK.clamp(min=0), ids_CK >= 0)
    if (ids_CK < 0).any():
        # The placeholder's id 0 may have overwritten an entry 0.
        kept_CV[:, 0] = (ids_CK == 0).any(1)
    rest_CV = logprobs_CV.masked_fill(kept_CV, -torch.inf)
    expected_CK = logprobs_CV.gather(1, ids_CK.clamp(min=0)).masked_fill(ids_CK < 0, -torch.inf)
    np.testing.assert_allclose(found.topk_logprobs_PK, expected_CK, **CLOSE)
    np.testing.assert_allclose(found.tail_logprob_P, rest_CV.logsumexp(1), **CLOSE)
    gold_C1 = torch.arange(len(logits_CV))[:, None] * 7
    np.testing.assert_allclose(found.gold_logprob_P, logprobs_CV.gather(1, gold_C1)[:, 0], **CLOSE)
    for index, temperature in enumerate(temperatures):
        lse_C = (logprobs_CV / temperature).logsumexp(1)
        np.testing.assert_allclose(found.tempered_lse_PM[:, index], lse_C, **CLOSE)
        tail_C = (rest_CV / temperature).logsumexp(1) - lse_C
        np.testing.assert_allclose(found.tempered_tail_PM[:, index], tail_C, **CLOSE)
    mass_P = np.exp(found.topk_logprobs_PK.astype(np.float64)).sum(1) + np.exp(found.tail_logprob_P.astype(np.float64))
    np.testing.assert_allclose(mass_P, 1, atol=1e-6)
    for ids_K in found.topk_ids_PK:
        ids = ids_K[ids_K >= 0]
        assert len(set(ids.tolist())) == len(ids)


KINDS = ["ordinary", "flat", "tied", "peaked", "few", "large"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_kept", [1, 64, 999, 1000, 1500])
def test_top_k(kind: str, num_kept: int) -> None:
    logits_CV = logits(kind)
    found = cut(logits_CV, TopKSupport(num_kept=num_kept), (0.5, 3.0))
    order_CK = np.argsort(-logits_CV.numpy(), axis=1, kind="stable")[:, :num_kept]
    order_CK[np.isneginf(np.take_along_axis(logits_CV.numpy(), order_CK, 1))] = -1
    np.testing.assert_array_equal(found.topk_ids_PK[:, : order_CK.shape[1]], order_CK)
    assert (found.topk_ids_PK[:, VOCAB_SIZE:] == -1).all()
    matches_definition(found, logits_CV, (0.5, 3.0))


ADAPTIVE = {
    "probability": AdaptiveSupport(min_probability=0.0031, max_kept=100),
    "mass": AdaptiveSupport(min_probability=None, min_mass=0.83, max_kept=100),
    "both": AdaptiveSupport(min_probability=0.0031, min_mass=0.83, min_kept=7, max_kept=40),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", ADAPTIVE)
def test_adaptive_keeps_the_fewer_of_its_rules_within_its_limits(kind: str, rule: str) -> None:
    logits_CV, support = logits(kind), ADAPTIVE[rule]
    found = cut(logits_CV, support, (2.0,))
    for logits_V, ids_K in zip(logits_CV, found.topk_ids_PK, strict=True):
        descending_V = logits_V.double().softmax(0).sort(descending=True).values.numpy()
        wanted = support.max_kept
        if support.min_probability is not None:
            wanted = min(wanted, int((descending_V >= support.min_probability).sum()))
        if support.min_mass is not None:
            wanted = min(wanted, int(np.searchsorted(descending_V.cumsum(), support.min_mass)) + 1)
        wanted = min(max(wanted, support.min_kept), int(logits_V.isfinite().sum()))
        order_V = np.argsort(-logits_V.numpy(), kind="stable")
        np.testing.assert_array_equal(ids_K[:wanted], order_V[:wanted])
        assert (ids_K[wanted:] == -1).all()
    matches_definition(found, logits_CV, (2.0,))


def uniforms(count: int, num_draws: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((count, num_draws)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_draws", [1, 50, 3000])
def test_sampled_entries_are_the_distinct_draws_in_order(kind: str, num_draws: int) -> None:
    logits_CV = logits(kind)
    found = cut(logits_CV, SampledSupport(num_draws=num_draws), (0.5,), uniforms_CN=uniforms(len(logits_CV), num_draws))
    assert (found.counts_PK.sum(1) == num_draws).all()
    assert found.topk_ids_PK.shape == found.counts_PK.shape == (len(logits_CV), num_draws)
    for logits_V, ids_K in zip(logits_CV.numpy(), found.topk_ids_PK, strict=True):
        ids = ids_K[ids_K >= 0]
        np.testing.assert_array_equal(ids, sorted(ids, key=lambda place: (-logits_V[place], place)))
    matches_definition(found, logits_CV, (0.5,))


def test_sampled_estimates_every_probability_without_bias() -> None:
    logits_CV = torch.randn(1, 200, generator=torch.Generator().manual_seed(3)) * 2
    probability_V = logits_CV.double().softmax(1)[0].numpy()
    num_draws, count = 50, 4000
    found = truncate(
        filled(logits_CV.expand(count, -1)),
        200,
        torch.zeros(count, dtype=torch.long),
        SampledSupport(num_draws=num_draws),
        (),
        uniforms(count, num_draws, 1),
    )
    total_V = np.zeros(200)
    np.add.at(total_V, found.topk_ids_PK.clip(min=0), found.counts_PK)
    error_V = total_V / (num_draws * count) - probability_V
    standard_error_V = np.sqrt(probability_V * (1 - probability_V) / (num_draws * count))
    assert (np.abs(error_V) < 4 * standard_error_V).all()
    assert np.sqrt(np.mean((error_V / standard_error_V) ** 2)) < 1.3


def test_no_draw_has_probability_zero_even_at_the_ends() -> None:
    logits_CV = torch.full((2, 200), -torch.inf)
    logits_CV[0, [33, 150]] = 0.0
    logits_CV[1, 40] = 0.0
    ends_CN = torch.tensor([0.0, 0.5, np.nextafter(1.0, 0.0), np.nextafter(0.5, 0.0)]).double().expand(2, -1)
    found = cut(logits_CV, SampledSupport(num_draws=4), uniforms_CN=ends_CN.contiguous())
    assert found.topk_ids_PK.tolist() == [[33, 150, -1, -1], [40, -1, -1, -1]]
    assert found.counts_PK.tolist() == [[2, 2, 0, 0], [4, 0, 0, 0]]


SUPPORTS: list[Support] = [TopKSupport(num_kept=64), ADAPTIVE["both"], SampledSupport(num_draws=50)]


def assert_same(one: Positions, other: Positions, close: dict[str, float]) -> None:
    for left, right in zip(one.arrays(), other.arrays(), strict=True):
        np.testing.assert_allclose(left, right, **close)


@pytest.mark.parametrize("support", SUPPORTS, ids=lambda support: support.kind)
def test_chunks_and_blocks_change_nothing(support: Support) -> None:
    generator = torch.Generator().manual_seed(5)
    head = Float32Head(torch.randn(VOCAB_SIZE, 16, generator=generator), None, VOCAB_SIZE)
    hidden_CD = torch.randn(40, 16, generator=generator)
    gold_C, uniforms_CN = torch.arange(40), uniforms(40, 50)
    whole = Truncation(head, support, (2.0,))(hidden_CD, gold_C, uniforms_CN)
    chunked = Truncation(head, support, (2.0,))
    parts = [
        chunked(hidden_CD[part], gold_C[part], uniforms_CN[part])
        for part in (slice(0, 17), slice(17, 18), slice(18, 40))
    ]
    assert_same(Positions.joined(parts), whole, {"rtol": 1e-6, "atol": 2e-6})
    for block_bytes in (1, 100_000):
        groups = Scan(VOCAB_SIZE, (2.0,), block_bytes=block_bytes)(head.fill(hidden_CD), 40, hidden_CD.device)
        assert_same(truncated(groups, gold_C, support, (2.0,), uniforms_CN), whole, {"rtol": 1e-6, "atol": 2e-6})


def test_a_transform_acts_on_every_logit() -> None:
    generator = torch.Generator().manual_seed(6)
    head = Float32Head(torch.randn(300, 16, generator=generator), torch.randn(310, generator=generator), 300)
    hidden_CD = torch.randn(5, 16, generator=generator)

    def cap(out_NC: Tensor) -> None:
        out_NC.div_(3).tanh_().mul_(3)

    gold_C = torch.arange(5)
    found = Truncation(head, TopKSupport(num_kept=8), (), cap)(hidden_CD, gold_C)
    expected = truncate(filled(3 * torch.tanh(head(hidden_CD) / 3)), 300, gold_C, TopKSupport(num_kept=8))
    assert_same(found, expected, {"rtol": 1e-5, "atol": 1e-5})


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("support", SUPPORTS, ids=lambda support: support.kind)
def test_what_is_not_finite_shows_in_the_first_logprob(bad: float, support: Support) -> None:
    logits_CV = torch.zeros(3, 100)
    logits_CV[1, 3 if bad > -torch.inf or bad != bad else slice(None)] = bad
    found = truncate(filled(logits_CV), 100, torch.zeros(3, dtype=torch.long), support, (), uniforms(3, 50))
    assert np.isfinite(found.topk_logprobs_PK[:, 0]).tolist() == [True, False, True]
