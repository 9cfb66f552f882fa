"""Truncation against the definition, on the distributions that break shortcuts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tasks.dump_logits.batches import length_buckets
from tasks.dump_logits.head import Float32Head
from tasks.dump_logits.largest import largest
from tasks.logits.positions import Positions
from tasks.logits.schema import TopKSupport
from tests.dump_logits.truncation import truncate


def by_definition(logits_CV: Tensor, num_kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids by (logit descending, id ascending), and log-probabilities of the whole vocabulary in float64."""
    ids_CV = np.argsort(-logits_CV.numpy(), axis=1, kind="stable")
    return ids_CV[:, :num_kept], logits_CV.double().log_softmax(1).numpy()


def tied(count: int, vocab_size: int, levels: int) -> Tensor:
    return torch.randint(0, levels, (count, vocab_size), generator=torch.Generator().manual_seed(levels)).float()


def distributions(logits_CV: Tensor, gold_C: Tensor, num_kept: int, temperatures: tuple[float, ...]) -> Positions:
    def fill(first: int, out_NC: Tensor) -> None:
        out_NC.copy_(logits_CV[:, first : first + len(out_NC)].T)

    return truncate(fill, logits_CV.shape[1], gold_C, TopKSupport(num_kept=num_kept), temperatures)


CASES = {
    "ordinary": torch.randn(64, 300, generator=torch.Generator().manual_seed(0)) * 4,
    "flat": torch.zeros(3, 300),
    "three levels": tied(64, 300, 3),
    "as bfloat16 rounds": (torch.randn(64, 300, generator=torch.Generator().manual_seed(1)) * 4).bfloat16().float(),
    "peaked": torch.eye(40, 300) * torch.arange(1, 401, 10)[:, None] + torch.linspace(-1, 1, 300),
    "few": torch.where(
        torch.rand(40, 300, generator=torch.Generator().manual_seed(2)) < 0.98, -torch.inf, 1.0
    ).index_fill(1, torch.tensor([7]), 2.0),
    "tied at the cut": torch.cat((torch.arange(12.0).repeat(4, 1), torch.full((4, 288), -3.0)), 1),
}


@pytest.mark.parametrize("num_kept", [1, 16, 299, 300])
@pytest.mark.parametrize("case", CASES)
def test_truncation_is_exact(case: str, num_kept: int) -> None:
    logits_CV = CASES[case]
    gold_C = torch.arange(len(logits_CV)) * 7 % 300
    ids_CK, logprobs_CV = by_definition(logits_CV, num_kept)
    found = distributions(logits_CV.clone(), gold_C, num_kept, (0.5, 2.0))

    kept_CK = np.isfinite(np.take_along_axis(logprobs_CV, ids_CK, 1))
    np.testing.assert_array_equal(found.topk_ids_PK, np.where(kept_CK, ids_CK, -1))
    close = {"rtol": 1e-6, "atol": 3e-6}
    np.testing.assert_allclose(found.topk_logprobs_PK, np.take_along_axis(logprobs_CV, ids_CK, 1), **close)
    np.testing.assert_allclose(found.gold_logprob_P, logprobs_CV[np.arange(len(gold_C)), gold_C], **close)

    rest_CV = torch.from_numpy(logprobs_CV.copy())
    rest_CV.scatter_(1, torch.from_numpy(ids_CK), -torch.inf)
    np.testing.assert_allclose(found.tail_logprob_P, rest_CV.logsumexp(1).numpy(), **close)
    for index, temperature in enumerate((0.5, 2.0)):
        lse_C = (torch.from_numpy(logprobs_CV) / temperature).logsumexp(1)
        tail_C = (rest_CV / temperature).logsumexp(1) - lse_C
        np.testing.assert_allclose(found.tempered_lse_PM[:, index], lse_C.numpy(), **close)
        np.testing.assert_allclose(found.tempered_tail_PM[:, index], tail_C.numpy(), **close)


def test_tail_of_a_peaked_position_is_kept_where_one_minus_the_head_is_zero() -> None:
    logits_CV = torch.cat((torch.tensor([[0.0]]), torch.full((1, 299), -150.0)), 1)
    found = distributions(logits_CV, torch.tensor([0]), 1, ())
    assert float(found.tail_logprob_P[0]) == pytest.approx(np.log(299) - 150, rel=1e-6)


def test_ties_across_the_cut_take_the_lowest_ids() -> None:
    logits_CV = torch.tensor([[1.0, 5.0, 1.0, 3.0, 1.0, 3.0]])
    assert largest(logits_CV, 4)[1].tolist() == [[1, 3, 5, 0]]
    assert largest(logits_CV, 2)[1].tolist() == [[1, 3]]


def test_bfloat16_weights_give_float32_logits_of_the_real_rows_only() -> None:
    generator = torch.Generator().manual_seed(0)
    weight_RD, hidden_CD = torch.randn(40, 16, generator=generator), torch.randn(5, 16, generator=generator)
    bias_R = torch.randn(40, generator=generator)
    head = Float32Head(weight_RD.bfloat16(), bias_R.bfloat16(), 33)
    logits_CV = head(hidden_CD.bfloat16())
    assert logits_CV.dtype == torch.float32
    exact = hidden_CD.bfloat16().double() @ weight_RD.bfloat16().double().T + bias_R.bfloat16().double()
    torch.testing.assert_close(logits_CV.double(), exact[:, :33], rtol=1e-6, atol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation made."""

    num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.num_elements = max(self.num_elements, value.numel())
        return result


def test_nothing_larger_than_a_chunk_of_logits_is_made() -> None:
    with LargestTensor() as seen:
        distributions(torch.randn(8, 5000), torch.zeros(8, dtype=torch.long), 16, (2.0,))
        distributions(tied(8, 5000, 3), torch.zeros(8, dtype=torch.long), 16, (2.0,))
    # The last group of ids is filled up.
    assert seen.num_elements == 8 * 5024


def test_batches_hold_rows_of_like_length_within_the_budget_and_each_row_once() -> None:
    lengths = [5, 100, 7, 1, 64, 64, 2, 300]
    batches = length_buckets(lengths, 128)
    assert batches == [[7], [1], [4, 5], [2, 0, 6]]
    assert all(len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= 128 for batch in batches)
