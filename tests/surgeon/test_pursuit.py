"""The pursuit over few anchors is orthogonal matching pursuit: mergekit's and a plain one in float64 agree."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from mergekit.tokensurgeon import batch_omp
from torch import Tensor

from tasks.artifacts.errors import BadInputError
from tasks.surgeon.pursuit import anchored_pursuit, cosines, most_used_anchors

Array = npt.NDArray[np.float64]


def _matrices(num_targets: int, num_anchors: int, width: int) -> tuple[Tensor, Tensor]:
    """Targets and anchors of unlike lengths with a direction in common, as embeddings have one."""
    generator = torch.Generator().manual_seed(7)
    common_D = torch.randn(width, generator=generator)
    lengths_A1 = torch.rand(num_anchors, 1, generator=generator) + 0.5
    anchors_AD = (torch.randn(num_anchors, width, generator=generator) + 0.5 * common_D) * lengths_A1
    return torch.randn(num_targets, width, generator=generator) + 0.5 * common_D, anchors_AD


def _plain_pursuit(target_D: Array, anchors_AD: Array, k: int) -> tuple[list[int], Array]:
    chosen: list[int] = []
    left_D, weights = target_D, np.zeros(0)
    for _ in range(k):
        products_A = np.abs(anchors_AD @ left_D)
        products_A[chosen] = -1
        chosen.append(int(products_A.argmax()))
        weights = np.linalg.lstsq(anchors_AD[chosen].T, target_D, rcond=None)[0]
        left_D = target_D - weights @ anchors_AD[chosen]
    return chosen, weights


def test_equals_mergekit_and_a_plain_pursuit_in_float64() -> None:
    targets_ND, anchors_AD = _matrices(40, 300, 48)
    sums = anchored_pursuit(targets_ND, anchors_AD, 12)
    theirs_NK, weights_NK = batch_omp(targets_ND, anchors_AD, 12)
    assert torch.equal(sums.sources_NK, theirs_NK)
    torch.testing.assert_close(sums.weights_NK, weights_NK, rtol=1e-3, atol=1e-5)
    for row in range(len(sums)):
        chosen, weights = _plain_pursuit(targets_ND[row].double().numpy(), anchors_AD.double().numpy(), 12)
        assert sums.sources_NK[row].tolist() == chosen
        np.testing.assert_allclose(sums.weights_NK[row].numpy(), weights, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 512])
def test_the_batch_changes_nothing(batch_size: int) -> None:
    targets_ND, anchors_AD = _matrices(20, 200, 32)
    whole = anchored_pursuit(targets_ND, anchors_AD, 16)
    parts = anchored_pursuit(targets_ND, anchors_AD, 16, batch_size=batch_size)
    assert torch.equal(whole.sources_NK, parts.sources_NK)
    torch.testing.assert_close(whole.weights_NK, parts.weights_NK, rtol=1e-6, atol=1e-6)


def test_a_target_that_is_explained_takes_no_more_anchors() -> None:
    """More anchors than dimensions, a repeated anchor and a target of zeros: no coefficient runs away."""
    targets_ND, anchors_AD = _matrices(6, 60, 8)
    anchors_AD[1] = anchors_AD[0]
    targets_ND[0], targets_ND[1] = 0, 3 * anchors_AD[0]
    sums = anchored_pursuit(targets_ND, anchors_AD, 20)
    assert (sums.weights_NK != 0).sum(dim=1).tolist()[0] == 0
    assert (sums.weights_NK != 0).sum(dim=1).max() <= 8
    torch.testing.assert_close(sums.apply(anchors_AD), targets_ND, rtol=1e-4, atol=1e-5)
    assert sums.weights_NK.abs().max() < 100


def test_more_anchors_explain_more() -> None:
    targets_ND, anchors_AD = _matrices(30, 400, 64)
    few = anchored_pursuit(targets_ND, anchors_AD[:100], 16).apply(anchors_AD[:100])
    many = anchored_pursuit(targets_ND, anchors_AD, 16).apply(anchors_AD)
    assert cosines(few, targets_ND).mean() + 0.01 < cosines(many, targets_ND).mean() < 1


def test_k_above_the_anchors_is_refused() -> None:
    targets_ND, anchors_AD = _matrices(2, 4, 8)
    with pytest.raises(BadInputError, match="k is 5, but there are only 4 anchors"):
        anchored_pursuit(targets_ND, anchors_AD, 5)


@pytest.mark.parametrize("what", ["anchors", "rows to be made"])
def test_rows_that_are_not_finite_are_refused(what: str) -> None:
    targets_ND, anchors_AD = torch.randn(3, 8), torch.randn(5, 8)
    (anchors_AD if what == "anchors" else targets_ND)[1, 2] = torch.nan
    with pytest.raises(BadInputError, match=f"1 of the . {what} are not finite"):
        anchored_pursuit(targets_ND, anchors_AD, 2)


def test_anchors_are_the_smallest_ids() -> None:
    assert most_used_anchors(np.array([5, 90, 7, 300, 1]), 3).tolist() == [0, 2, 4]
    assert most_used_anchors(np.array([5, 90]), 3).tolist() == [0, 1]
