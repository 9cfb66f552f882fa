"""Composed rows are the stated sums of the rows of the pieces."""

from __future__ import annotations

import pytest
import torch

from tasks.surgeon.combinations import Combinations
from tasks.surgeon.compose import composed


def _rows() -> torch.Tensor:
    return torch.randn(10, 6, generator=torch.Generator().manual_seed(3))


def test_later_pieces_weigh_more_as_far_as_they_shall() -> None:
    rows_RD = _rows()
    whole, long = composed([(4,), (1, 2, 9)], scale=0.5, decay=0.5).apply(rows_RD)
    torch.testing.assert_close(whole, 0.5 * rows_RD[4])
    torch.testing.assert_close(long, 0.5 * (rows_RD[1] / 7 + rows_RD[2] * 2 / 7 + rows_RD[9] * 4 / 7))
    (mean,) = composed([(1, 2, 2)], scale=1, decay=1).apply(rows_RD)
    torch.testing.assert_close(mean, (rows_RD[1] + 2 * rows_RD[2]) / 3)


def test_the_same_sums_over_another_matrix() -> None:
    """Positions in a selection become ids, and bfloat16 rows are summed in float32."""
    rows_RD = _rows().bfloat16()
    sums = Combinations(torch.tensor([[0, 2], [1, 1]]), torch.tensor([[1.0, -2.0], [0.25, 0.0]]))
    ids = torch.tensor([7, 3, 5])
    expected = torch.stack([rows_RD[7].float() - 2 * rows_RD[5].float(), 0.25 * rows_RD[3].float()])
    result = sums.over(ids).apply(rows_RD)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("width", [1, 6])
def test_no_tokens_give_no_rows(width: int) -> None:
    assert composed([]).apply(torch.ones(4, width)).shape == (0, width)
