"""Which documents share a row and a forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from tasks.artifacts.errors import BadInputError
from tasks.training.packing import Packing, micro_batches, num_padded, packed_rows, split_batches
from tasks.training.rows import CorpusRows
from tests.training.parts import LENGTHS, make_rows

SOURCE = CorpusRows(make_rows()["train"])


def named(rows: Sequence[Sequence[int]], lengths: Mapping[int, int]) -> list[list[int]]:
    return [[lengths[index] for index in row] for row in rows]


def test_documents_go_where_they_leave_the_least_room() -> None:
    lengths = dict(enumerate([5, 9, 2, 7, 3, 4]))
    # 9, then 7, then 5; 4 fits behind 5 only; 3 fits behind 7; 2 fits nowhere.
    assert named(packed_rows(range(6), lengths, 10), lengths) == [[9], [7, 3], [5, 4], [2]]
    assert packed_rows([1, 0, 2], {0: 4, 1: 4, 2: 2}, 6) == [[1, 2], [0]]


def test_passes_hold_the_tokens_they_may_and_the_largest_comes_first() -> None:
    lengths = dict(enumerate(LENGTHS["train"]))
    batches = micro_batches(range(12), lengths, Packing(40))
    assert sorted(index for batch in batches for row in batch for index in row) == list(range(12))
    areas = [sum(map(sum, named(batch, lengths))) + num_padded(batch, lengths) for batch in batches]
    assert areas == sorted(areas, reverse=True)
    assert areas[0] == 40
    assert max(sum(map(len, batch)) for batch in batches) > 2
    # One row where nothing else fits, and rows of a set length.
    assert [len(batch) for batch in micro_batches(range(12), lengths, Packing(1))] == [1] * len(batches) * 2
    wide = micro_batches(range(12), lengths, Packing(1, 60))
    assert [sum(map(sum, named(batch, lengths))) for batch in wide] == [60, 51]


@pytest.mark.parametrize(("low", "high", "limit", "share"), [(20, 256, 256, 0.02), (20, 256, 1024, 0.01)])
def test_little_is_padding(low: int, high: int, limit: int, share: float) -> None:
    drawn = np.random.default_rng(0).integers(low, high + 1, 256).tolist()
    lengths = dict(enumerate(drawn))
    batches = micro_batches(range(256), lengths, Packing(4096, limit))
    assert sum(num_padded(batch, lengths) for batch in batches) < share * sum(drawn)


def test_a_split_is_judged_once_and_in_step() -> None:
    shares = [split_batches(SOURCE, Packing(40), rank, 2) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1]) > 1
    assert shares[1][-1] == []
    assert [] not in shares[0]
    assert sorted(row for share in shares for batch in share for rows in batch for row in rows) == list(range(12))


def test_a_document_that_is_too_long_is_named() -> None:
    with pytest.raises(BadInputError, match=f"row {SOURCE.row_id(11)} has 20 tokens, runtime.pack_tokens is 19"):
        split_batches(SOURCE, Packing(40, 19), 0, 1)
    assert split_batches(SOURCE, Packing(40, 20), 0, 1)
