"""What each process gets of a step, read before it is asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import torch

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import CorruptArtifactError, ObjectMissingError
from tasks.artifacts.store import Store
from tasks.logits.reader import LogitReader
from tasks.training.batches import collate
from tasks.training.loader import STEPS_AHEAD, StepBatches, StepLoader, StepPass, batches_ahead
from tasks.training.order import StepOrder
from tasks.training.packing import Packing
from tasks.training.rows import CorpusRows, RowSource, TrainingRow
from tests.training.parts import logit_store, make_model, make_rows

ROWS = make_rows()["train"]
SOURCE = CorpusRows(ROWS)
ORDER = StepOrder(12, 8, 0)
SMALL = Packing(20)
NUM_PASSES = 5


def load(
    rank: int = 0,
    world_size: int = 1,
    *,
    packing: Packing = SMALL,
    source: RowSource = SOURCE,
    order: StepOrder = ORDER,
) -> StepBatches:
    loader = StepLoader(source, order, 1, packing, rank, world_size)
    try:
        return loader.load(0)
    finally:
        loader.close()


def test_processes_share_the_same_passes() -> None:
    alone = load()
    passes = [batch.row_ids for batch in alone.batches]
    assert len(passes) == NUM_PASSES
    assert sorted(row_id for ids in passes for row_id in ids) == sorted(ROWS[row].row_id for row in ORDER.rows(0))
    for world_size in (2, 3, 6):
        shares = [load(rank, world_size) for rank in range(world_size)]
        assert {len(share.batches) for share in shares} == {-(-NUM_PASSES // world_size)}
        dealt = [share.batches[index] for index in range(len(shares[0].batches)) for share in shares]
        # What is left over runs without targets.
        assert [batch.row_ids for batch in dealt[:NUM_PASSES]] == passes
        assert [len(batch.positions_N) for batch in dealt[NUM_PASSES:]] == [0] * (len(dealt) - NUM_PASSES)
        for share in shares:
            said = (share.num_targets, share.num_tokens, share.num_padded)
            assert said == (alone.num_targets, alone.num_tokens, alone.num_padded)


@pytest.mark.parametrize("source", [SOURCE, CorpusRows(ROWS[:3])], ids=["large", "smaller than a step"])
def test_a_step_is_counted(source: CorpusRows) -> None:
    order = StepOrder(len(source), 8, 0)
    share = load(source=source, order=order)
    rows = [ROWS[index] for index in order.rows(0)]
    assert share.num_targets == sum(int(row.loss_mask[1:].sum()) for row in rows)
    assert share.num_targets == sum(len(batch.positions_N) for batch in share.batches)
    assert share.num_tokens == sum(len(row.input_ids) for row in rows)
    assert share.num_padded == sum(batch.input_ids_BL.numel() for batch in share.batches) - share.num_tokens


def test_a_pass_is_named() -> None:
    loader = StepLoader(SOURCE, ORDER, 1, SMALL, 1, 3)
    batches = loader.load(0).batches
    passes = loader.passes(0)
    # There is no sixth, which would only keep process 2 in step.
    assert len(passes) == NUM_PASSES
    for place, batch in ((1, batches[0]), (4, batches[1])):
        assert passes[place] == StepPass(batch.row_ids, len(batch.positions_N))
    loader.close()


def test_passes_of_a_split_are_read_ahead_and_in_order() -> None:
    groups = [[[index, (index + 5) % 12], [(index + 7) % 12]] for index in range(12)]
    for group, batch in zip(groups, batches_ahead(SOURCE, groups), strict=True):
        expected = collate([[ROWS[index] for index in row] for row in group])
        assert batch.row_ids == expected.row_ids
        assert torch.equal(batch.input_ids_BL, expected.input_ids_BL)
        assert torch.equal(batch.positions_N, expected.positions_N)
    with closing(batches_ahead(SOURCE, groups)) as batches:
        next(batches)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


class Recorded(CorpusRows):
    """Notes what is read while its gate is open, takes a while over it, and does not find one row."""

    def __init__(self, rows: Sequence[TrainingRow], seconds: float = 0.0, missing: int | None = None) -> None:
        super().__init__(rows)
        self.seconds, self.missing = seconds, missing
        self.read = set[int]()
        self.gate = threading.Event()
        self.gate.set()

    def many(self, indices: Sequence[int]) -> list[TrainingRow]:
        assert self.gate.wait(20)
        time.sleep(self.seconds)
        if self.missing is not None and self.missing in indices:
            raise ObjectMissingError(f"no logits for row {self.row_id(self.missing)}")
        self.read |= set(indices)
        return super().many(indices)


def test_steps_are_read_ahead_and_no_further() -> None:
    source = Recorded(ROWS, seconds=0.05)
    order = StepOrder(12, 2, 0)
    loader = StepLoader(source, order, 6, Packing(40), 0, 1)
    assert loader.load(0).wait_seconds >= 0.05
    near = {row for step in range(1 + STEPS_AHEAD) for row in order.rows(step)}
    deadline = time.monotonic() + 10
    while source.read != near and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.15)
    assert source.read == near
    # The step is there: nothing more has to be read for it.
    source.gate.clear()
    assert len(loader.load(1).batches) > 0
    assert source.read == near
    source.gate.set()
    # A jump reads what it asks for.
    assert {row_id for batch in loader.load(5).batches for row_id in batch.row_ids} == {
        ROWS[row].row_id for row in order.rows(5)
    }
    loader.close()


def test_a_missing_row_is_an_error_of_its_step() -> None:
    order = StepOrder(12, 4, 0)
    missing = order.rows(1)[2]
    loader = StepLoader(Recorded(ROWS, missing=missing), order, 3, Packing(40), 0, 1)
    assert len(loader.load(0).batches) > 0
    for _ in range(2):
        with pytest.raises(ObjectMissingError, match=ROWS[missing].row_id):
            loader.load(1)
    assert len(loader.load(2).batches) > 0
    loader.close()


def test_a_row_that_is_not_what_the_index_says_is_refused() -> None:
    class Shifted(CorpusRows):
        def num_targets(self, index: int) -> int:
            return super().num_targets(index) + (index == wrong)

    wrong = ORDER.rows(0)[3]
    with pytest.raises(CorruptArtifactError, match=ROWS[wrong].row_id):
        load(source=Shifted(ROWS))


def test_a_real_store_with_a_lost_object(tmp_path: Path, store: Store, artifact_of: Callable[..., Artifact]) -> None:
    artifact = logit_store(tmp_path / "logits", artifact_of, make_model(), {"train": ROWS})
    manifest = artifact.manifest()
    assert manifest is not None

    def rows() -> RowSource:
        return LogitReader(store, artifact.directory, manifest).rows("train")

    whole = load(source=rows(), packing=Packing(4096, 128))
    assert len(whole.batches) == 1
    assert torch.isfinite(whole.batches[0].targets.topk_logprobs_NK).all()
    assert len(whole.batches[0].positions_N) == whole.num_targets == load().num_targets
    lost = next(entry for entry in manifest.objects if entry.name.startswith("train-00001/documents/c"))
    store.delete(artifact.path(lost.path))
    with pytest.raises(ObjectMissingError, match="train-00001"):
        load(source=rows())
