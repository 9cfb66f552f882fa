"""Which rows a step reads, and that exactly the right positions of them are judged."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tasks.artifacts.errors import CorruptArtifactError
from tasks.training.batches import (
    CorpusRows,
    StepLoader,
    StepOrder,
    TemperedRows,
    collate,
    micro_batches,
    split_batches,
)
from tests.training.parts import NUM_KEPT, dense_logits, make_model, make_rows, truncate

SOURCE = CorpusRows(make_rows()["train"])


def test_every_epoch_is_another_permutation_and_steps_run_across_epochs() -> None:
    order = StepOrder(num_rows=12, rows_per_step=5, seed=3)
    stream = [row for step in range(12) for row in order.rows(step)]
    epochs = [stream[start : start + 12] for start in range(0, 60, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    # Any step alone, as after a resume, and in any order.
    assert [StepOrder(12, 5, 3).rows(step) for step in (7, 2)] == [stream[35:40], stream[10:15]]
    assert StepOrder(12, 5, 4).rows(0) != stream[:5]


def test_the_order_is_fixed_for_all_time() -> None:
    """A change here would resume running trainings on other rows and must raise the stages' versions."""
    assert StepOrder(10, 10, 0).rows(0) == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]


def test_processes_share_the_same_micro_batches() -> None:
    order = StepOrder(12, 8, 0)

    def ids(rank: int, world_size: int) -> list[tuple[str, ...]]:
        loader = StepLoader(SOURCE, order, 1, 2, rank, world_size)
        share = loader.load(0)
        loader.close()
        assert share.num_targets == sum(SOURCE.num_targets(row) for row in order.rows(0))
        return [batch.row_ids for batch in share.batches]

    alone = ids(0, 1)
    assert len(alone) == 4
    assert [ids(0, 2), ids(1, 2)] == [alone[0::2], alone[1::2]]
    assert [SOURCE.num_tokens(row) for group in micro_batches(SOURCE, range(12), 2) for row in group] == sorted(
        (SOURCE.num_tokens(row) for row in range(12)), reverse=True
    )


def test_a_split_is_judged_once_and_in_step() -> None:
    shares = [split_batches(SOURCE, 5, rank, 2) for rank in (0, 1)]
    assert [len(share) for share in shares] == [2, 2]
    assert shares[1][1] == []
    assert sorted(row for share in shares for group in share for row in group) == list(range(12))


def test_the_mask_is_read_at_the_predicted_token() -> None:
    """Prompt 5 6 | answer 7 8 | end 9 | another turn 5: 7, 8 and 9 are predicted, what follows the end is not."""
    row = SimpleNamespace(
        row_id="a", input_ids=np.array([5, 6, 7, 8, 9, 5], np.int32), loss_mask=np.array([0, 0, 1, 1, 1, 0], np.uint8)
    )
    longer = SimpleNamespace(row_id="b", input_ids=np.arange(8, dtype=np.int32), loss_mask=np.eye(8, dtype=np.uint8)[7])
    batch = collate([row, longer])
    assert batch.input_ids_BT.shape == (2, 8)
    assert batch.positions_N.tolist() == [1, 2, 3, 8 + 6]
    assert batch.targets.gold_N.tolist() == [7, 8, 9, 7]
    assert batch.targets.topk_ids_NK.shape == (4, 0)


def logit_row(temperatures: tuple[float, ...] = ()) -> SimpleNamespace:
    row = make_rows()["train"][4]
    positions = truncate(dense_logits(make_model(), row), row.input_ids[1:], temperatures)
    return SimpleNamespace(**vars(row), **{f.name: getattr(positions, f.name) for f in dataclasses.fields(positions)})


def test_teacher_entries_belong_to_the_judged_positions() -> None:
    row = logit_row()
    targets = collate([row]).targets
    judged = [p for p in range(len(row.input_ids) - 1) if row.loss_mask[p + 1]]
    assert torch.equal(targets.topk_ids_NK, torch.from_numpy(row.topk_ids_PK[judged]).long())
    assert torch.equal(targets.tail_logprob_N, torch.from_numpy(row.tail_logprob_P[judged]))
    assert targets.gold_N.tolist() == [int(row.input_ids[p + 1]) for p in judged]


def test_a_target_without_any_entry_is_refused() -> None:
    row = logit_row()
    row.topk_ids_PK[:] = -1
    with pytest.raises(CorruptArtifactError, match=row.row_id):
        collate([row])


def test_a_document_without_targets_makes_an_empty_batch() -> None:
    row = logit_row()
    row.loss_mask[:] = 0
    batch = collate([row])
    assert len(batch.positions_N) == 0
    assert batch.targets.topk_ids_NK.shape == (0, NUM_KEPT)


def test_tempering_is_exact() -> None:
    """From the stored entries at 1 and the normaliser at T, against the dense teacher at T."""
    row = make_rows()["train"][4]
    logits_PV = dense_logits(make_model(), row)
    stored = truncate(logits_PV, row.input_ids[1:], (0.5, 2.5))
    expected = truncate(logits_PV / 2.5, row.input_ids[1:], ())
    found = TemperedRows([stored], 2.5, 1)[0]  # type: ignore[arg-type]
    assert np.allclose(found.topk_logprobs_PK, expected.topk_logprobs_PK, atol=2e-6)
    assert np.allclose(found.tail_logprob_P, expected.tail_logprob_P, atol=2e-6)
