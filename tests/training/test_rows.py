"""Rows of one source and of several side by side."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tasks.artifacts.errors import BadInputError
from tasks.logits.positions import Positions
from tasks.training.rows import CorpusRows, MixedRows, TemperedRows
from tests.training.parts import dense_logits, make_model, make_rows, truncate

ROWS = make_rows()
TRAIN, HELDOUT = CorpusRows(ROWS["train"]), CorpusRows(ROWS["heldout"])


def test_tempering_is_exact() -> None:
    """From the stored entries at 1 and the normaliser at T, against the dense teacher at T."""
    row = ROWS["train"][4]
    logits_PV = dense_logits(make_model(), row)
    stored = truncate(logits_PV, row.input_ids[1:], (0.5, 2.5))
    expected = truncate(logits_PV / 2.5, row.input_ids[1:], ())
    found = TemperedRows(CorpusRows([stored]), 2.5, 1).many([0])[0]  # type: ignore[list-item]
    assert np.allclose(found.topk_logprobs_PK, expected.topk_logprobs_PK, atol=2e-6)
    assert np.allclose(found.tail_logprob_P, expected.tail_logprob_P, atol=2e-6)


def test_mixed_rows_are_the_sources_end_to_end_by_name() -> None:
    mixed = MixedRows({"web": TRAIN, "code": HELDOUT})
    assert list(mixed.sizes.items()) == [("code", 3), ("web", 12)]
    whole = [*ROWS["heldout"], *ROWS["train"]]
    order = [14, 0, 3, 2, 9, 3]
    assert [row.row_id for row in mixed.many(order)] == [whole[index].row_id for index in order]
    for index, row in enumerate(whole):
        found = (mixed.row_id(index), mixed.num_tokens(index), mixed.num_targets(index))
        assert found == (row.row_id, len(row.input_ids), row.loss_mask[1:].sum())
    with pytest.raises(IndexError):
        mixed.num_tokens(15)


def test_sources_that_cannot_be_mixed_are_refused() -> None:
    row = ROWS["train"][4]
    entries = truncate(dense_logits(make_model(), row), row.input_ids[1:], ())
    draws = replace(entries, counts_PK=np.ones_like(entries.topk_ids_PK, np.uint16))

    def source(positions: Positions) -> CorpusRows:
        return CorpusRows([SimpleNamespace(**vars(row), **vars(positions))])

    assert len(MixedRows({"a": source(entries), "b": source(entries)})) == 2
    with pytest.raises(BadInputError, match="a has the teacher's largest entries, b has draws from the teacher"):
        MixedRows({"a": source(entries), "b": source(draws)})
    with pytest.raises(BadInputError, match="b has no teacher"):
        MixedRows({"a": source(entries), "b": TRAIN})
    with pytest.raises(BadInputError, match="source b has no rows"):
        MixedRows({"a": TRAIN, "b": CorpusRows([])})
