"""A bfloat16 head on the CPU: exact entries from a rounded product."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tasks.dump_logits.head import Float32Head
from tasks.dump_logits.rounded import EXACT_IDS, RoundedLogits, can_round
from tasks.dump_logits.truncate import Truncation
from tasks.logits.positions import Positions, check
from tasks.logits.schema import AdaptiveSupport, Support, TopKSupport

VOCAB_SIZE = 8 * EXACT_IDS + 10
SIZE = 64

pytestmark = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bfloat16 product"
)


@pytest.fixture(scope="module")
def head() -> Float32Head:
    weight_VD = torch.randn(VOCAB_SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 0.4
    weight_VD[:, 0] = 1.0
    return Float32Head(weight_VD.bfloat16(), None, VOCAB_SIZE)


@pytest.fixture(scope="module")
def hidden_CD() -> Tensor:
    hidden_CD = torch.randn(40, SIZE, generator=torch.Generator().manual_seed(1))
    # Far from 0, as the logits of real models are: bfloat16 then has steps of 0.125.
    hidden_CD[:, 0] = 20.0
    return hidden_CD.bfloat16()


class Counted(Truncation):
    """Remembers how many positions were computed in float32 in the end."""

    num_exact = 0

    def _exact(self, hidden_CD: Tensor, gold_C: Tensor, uniforms_CN: Tensor | None) -> Positions:
        self.num_exact += len(hidden_CD)
        return super()._exact(hidden_CD, gold_C, uniforms_CN)


def exact_logprobs(head: Float32Head, hidden_CD: Tensor) -> Tensor:
    return (hidden_CD.double() @ head.weight_VD.double().T).log_softmax(1)


def test_the_product_is_rounded_by_the_distance_from_the_top(head: Float32Head, hidden_CD: Tensor) -> None:
    rounded = RoundedLogits(head, hidden_CD)
    out_NC = torch.empty(VOCAB_SIZE, len(hidden_CD))
    for first in range(0, VOCAB_SIZE, 1500):
        rounded.fill(first, out_NC[first : first + 1500])
    logits_CV = hidden_CD.double() @ head.weight_VD.double().T
    offset_C1 = logits_CV[:, :EXACT_IDS].amax(1, keepdim=True).bfloat16().double()
    torch.testing.assert_close(out_NC[:EXACT_IDS].T.double(), (logits_CV - offset_C1)[:, :EXACT_IDS], rtol=0, atol=1e-4)
    error_CV = (out_NC.T.double() - (logits_CV - offset_C1)).abs()
    assert (error_CV <= (logits_CV - offset_C1).abs() * 2**-8 + 1e-4).all()


@pytest.mark.parametrize(
    "support", [TopKSupport(num_kept=64), AdaptiveSupport(min_probability=1e-3, max_kept=64)], ids=lambda s: s.kind
)
def test_entries_are_exact_and_the_tail_nearly(head: Float32Head, hidden_CD: Tensor, support: Support) -> None:
    assert can_round(head, hidden_CD)
    truncation = Counted(head, support, (2.0,))
    found = truncation(hidden_CD, torch.arange(40) * 400)
    assert truncation.num_exact == 0
    check(found)
    logprobs_CV = exact_logprobs(head, hidden_CD)
    for logprobs_V, ids_K in zip(logprobs_CV, found.topk_ids_PK, strict=True):
        ids = torch.from_numpy(ids_K[ids_K >= 0]).long()
        # Sums in another order differ by 1e-5: neighbours that close may have changed places.
        np.testing.assert_allclose(logprobs_V[ids], logprobs_V.topk(len(ids)).values, rtol=0, atol=2e-5)
    kept_PK = found.topk_ids_PK >= 0
    expected_PK = logprobs_CV.gather(1, torch.from_numpy(found.topk_ids_PK).long().clamp(min=0)).numpy()
    np.testing.assert_allclose(found.topk_logprobs_PK[kept_PK], expected_PK[kept_PK], rtol=0, atol=1e-3)
    gold_C1 = torch.arange(40)[:, None] * 400
    np.testing.assert_allclose(found.gold_logprob_P, logprobs_CV.gather(1, gold_C1)[:, 0], rtol=0, atol=1e-3)
    lse_C = (logprobs_CV / 2).logsumexp(1)
    np.testing.assert_allclose(found.tempered_lse_PM[:, 0], lse_C, rtol=0, atol=1e-3)
    mass_P = np.exp(found.topk_logprobs_PK.astype(np.float64)).sum(1) + np.exp(found.tail_logprob_P.astype(np.float64))
    np.testing.assert_allclose(mass_P, 1, atol=1e-6)


def test_positions_whose_entries_rounding_leaves_open_are_computed_in_float32(
    head: Float32Head, hidden_CD: Tensor
) -> None:
    flat_CD = hidden_CD.clone()
    # All ids have the same logit: any 64 could be the largest.
    flat_CD[3, 1:] = 0
    truncation = Counted(head, TopKSupport(num_kept=64))
    found = truncation(flat_CD, torch.zeros(40, dtype=torch.long))
    assert truncation.num_exact == 1
    assert found.topk_ids_PK[3].tolist() == list(range(64))
    np.testing.assert_allclose(found.topk_logprobs_PK[3], -np.log(VOCAB_SIZE), rtol=1e-6)


def test_all_else_is_computed_in_float32(head: Float32Head, hidden_CD: Tensor) -> None:
    assert not can_round(head, hidden_CD.float())
    assert not can_round(Float32Head(head.weight_VD.float(), None, VOCAB_SIZE), hidden_CD)
    assert not can_round(Float32Head(head.weight_VD, torch.zeros(VOCAB_SIZE), VOCAB_SIZE), hidden_CD)
    assert not can_round(Float32Head(head.weight_VD, None, 1000), hidden_CD)
