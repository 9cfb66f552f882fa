"""Rows read a shard at a time, and the sample that the prior is counted on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.artifacts.errors import BadInputError, CorruptArtifactError
from tasks.dump_logits.corpus_rows import CorpusSplit
from tasks.dump_logits.prior_sample import sampled_rows
from tasks.logits.rows import Row, read_rows, write_rows
from tests.dump_logits.conftest import VOCAB, make_row


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """50 rows in groups of 7."""
    file = tmp_path / "train.parquet"
    write_rows(file, [make_row(1 + seed % 9, seed) for seed in range(50)])
    pq.write_table(pq.read_table(file), file, row_group_size=7)
    return file


def equal(found: list[Row], expected: list[Row]) -> bool:
    return [(row.row_id, row.input_ids.tolist(), row.loss_mask.tolist(), row.text, row.document) for row in found] == [
        (row.row_id, row.input_ids.tolist(), row.loss_mask.tolist(), row.text, row.document) for row in expected
    ]


def test_any_range_is_what_reading_everything_gives(path: Path) -> None:
    every = read_rows(path)
    split = CorpusSplit(path, VOCAB)
    assert len(split) == 50
    assert split.lengths_N.tolist() == [len(row.input_ids) for row in every]
    for first, count in [(0, 50), (0, 1), (6, 2), (7, 7), (13, 30), (49, 1)]:
        assert equal(split.read(first, count), every[first : first + count])
    assert equal(split.read_some(np.array([0, 6, 7, 48])), [every[index] for index in (0, 6, 7, 48)])
    assert split.row_id(20) == every[20].row_id


def test_ids_outside_the_vocabulary_are_named_by_their_row(path: Path) -> None:
    every = read_rows(path)
    highest = max(int(row.input_ids.max()) for row in every)
    bad = next(row for row in every if row.input_ids.max() == highest)
    with pytest.raises(BadInputError, match=f"row {bad.row_id} of train.parquet has no tokens or ids outside"):
        CorpusSplit(path, highest)


def test_tokens_that_are_not_those_of_the_id_are_refused(path: Path) -> None:
    table = pq.read_table(path)
    ids = table.column("row_id").to_pylist()
    ids[20], ids[21] = ids[21], ids[20]
    index = table.schema.get_field_index("row_id")
    pq.write_table(table.set_column(index, table.schema.field(index), pa.array(ids)), path)
    split = CorpusSplit(path, VOCAB)
    assert len(split.read(0, 20)) == 20
    with pytest.raises(CorruptArtifactError, match=r"row 20 of train\.parquet does not hold the tokens"):
        split.read(15, 10)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    pq.write_table(pa.table({"text": ["a"]}), file)
    with pytest.raises(BadInputError, match=r"train.parquet has no column row_id"):
        CorpusSplit(file, VOCAB)


def test_a_split_without_rows_has_none(tmp_path: Path) -> None:
    file = tmp_path / "heldout.parquet"
    write_rows(file, [])
    assert len(CorpusSplit(file, VOCAB)) == 0


def test_the_prior_is_counted_on_rows_spread_over_the_corpus() -> None:
    lengths = np.random.default_rng(0).integers(10, 2000, 5000)
    rows = sampled_rows(lengths, 65536)
    assert 65536 <= lengths[rows].sum() < 65536 + 2000
    assert len(np.unique(rows)) == len(rows)
    assert (np.diff(rows) > 0).all()
    # No gap is more than about twice another, which no run of one source escapes.
    assert np.diff(rows).max() <= 2.1 * np.diff(rows).min() + 1
    assert sampled_rows(lengths[:7], 10**6).tolist() == list(range(7))
    assert sampled_rows(lengths[:1], 1).tolist() == [0]
