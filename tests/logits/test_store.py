"""The store on disk: what is written is what is read, in any order, and nothing missing is read as zeros."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError, ObjectMissingError, StoreError
from tasks.artifacts.fingerprint import tree_sha256
from tasks.artifacts.manifest import Manifest
from tasks.logits.codec import Positions
from tasks.logits.reader import LogitReader, LogitRow
from tasks.logits.rows import Row
from tasks.logits.schema import LogitFormat, ShardPlan, Split, plan_shards
from tasks.logits.verify import verify
from tasks.logits.writer import write_shard


def opened(artifact: Artifact, cache_bytes: int = 2**20) -> LogitReader:
    return LogitReader(artifact.store, artifact.directory, manifest_of(artifact), cache_bytes)


def manifest_of(artifact: Artifact) -> Manifest:
    manifest = artifact.manifest()
    assert manifest is not None
    return manifest


def object_file(artifact: Artifact, name: str) -> Path:
    entry = manifest_of(artifact).object(name)
    assert entry is not None
    path = artifact.store.local_path(artifact.path(entry.path))
    assert path is not None
    return path


def assert_equal_rows(a: LogitRow, b: LogitRow) -> None:
    for name in LogitRow.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_plan_covers_every_row_once_in_order() -> None:
    plan = plan_shards({"heldout": 2, "train": 7}, 3)
    assert [(shard.name, shard.first_row, shard.num_rows) for shard in plan] == [
        ("train-00000", 0, 3),
        ("train-00001", 3, 3),
        ("train-00002", 6, 1),
        ("heldout-00000", 0, 2),
    ]
    assert plan_shards({"train": 0}, 3) == ()


def test_rows_come_back_as_they_were_written(
    logit_store: Artifact, rows: dict[Split, list[Row]], positions: dict[str, Positions]
) -> None:
    reader = opened(logit_store)
    for split, expected in rows.items():
        found = reader.rows(split)
        assert len(found) == len(expected)
        all_positions = Positions.joined([part for name, part in positions.items() if name.startswith(split)])
        start = 0
        for index, row in enumerate(expected):
            got = found[index]
            stop = start + len(row.input_ids) - 1
            assert got.row_id == row.row_id
            assert found.num_tokens(index) == len(row.input_ids)
            assert found.num_targets(index) == row.loss_mask[1:].sum()
            assert found.index_of(row.row_id) == index
            assert (got.input_ids.dtype, got.topk_ids_PK.dtype) == (np.int32, np.int32)
            np.testing.assert_array_equal(got.input_ids, row.input_ids)
            np.testing.assert_array_equal(got.loss_mask, row.loss_mask)
            np.testing.assert_array_equal(got.topk_ids_PK, all_positions.topk_ids_PK[start:stop])
            np.testing.assert_array_equal(got.gold_logprob_P, all_positions.gold_logprob_P[start:stop])
            for name in ("topk_logprobs_PK", "tail_logprob_P", "tempered_lse_PM", "tempered_tail_PM"):
                expected_values = getattr(all_positions, name)[start:stop]
                np.testing.assert_allclose(getattr(got, name), expected_values, rtol=1e-6, atol=1e-6)
            start = stop


def test_random_access_equals_sequential_whatever_the_cache_holds(
    logit_store: Artifact, rows: dict[Split, list[Row]]
) -> None:
    in_order = [opened(logit_store).rows("train")[index] for index in range(len(rows["train"]))]
    for cache_bytes in (1, 2**20):
        shuffled = opened(logit_store, cache_bytes).rows("train")
        order = [*range(len(shuffled)), *range(len(shuffled))]
        random.Random(0).shuffle(order)
        for index in order:
            assert_equal_rows(shuffled[index], in_order[index])


def test_rows_that_cross_chunks_are_put_together(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr("tasks.logits.writer.CHUNK_LENGTH", 16)
    artifact: Artifact = request.getfixturevalue("logit_store")
    rows: dict[Split, list[Row]] = request.getfixturevalue("rows")
    positions: dict[str, Positions] = request.getfixturevalue("positions")
    found = opened(artifact).rows("train")
    # Row 2 has 300 tokens and follows rows of 5 and of 1, so its positions start at 4 of the shard.
    np.testing.assert_array_equal(found[2].input_ids, rows["train"][2].input_ids)
    np.testing.assert_array_equal(found[2].topk_ids_PK, positions["train-00000"].topk_ids_PK[4 : 4 + 299])
    assert found[1].topk_ids_PK.shape == (0, 8)
    assert verify(artifact.store, artifact.directory, manifest_of(artifact)) == []


def test_a_shard_decodes_each_chunk_once_under_shuffled_access(
    logit_store: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[object] = []
    plain = zarr.Array.__getitem__

    def counted(array: zarr.Array, selection: object) -> object:
        reads.append((array.path, selection))
        return plain(array, selection)

    monkeypatch.setattr(zarr.Array, "__getitem__", counted)
    found = opened(logit_store).rows("train")
    for index in [4, 0, 6, 2, 5, 3] * 5:
        found[index]
    # Three shards of one chunk: 3 index arrays, 2 token arrays and 6 planes each.
    assert len(reads) == 3 * (3 + 2 + 6)


def test_plain_zarr_and_numpy_read_a_shard_as_the_readme_says(logit_store: Artifact) -> None:
    group = zarr.open_group(LocalStore(object_file(logit_store, "train-00000/zarr.json").parent), mode="r")
    offsets = group["offsets"][:]
    row = opened(logit_store).rows("train")[2]
    start, stop = offsets[2] - 2, offsets[3] - 3
    np.testing.assert_array_equal(group["topk_ids"][start:stop], row.topk_ids_PK)
    np.testing.assert_array_equal(group["topk_logprobs"][start:stop], row.topk_logprobs_PK)
    np.testing.assert_array_equal(group["input_ids"][offsets[2] : offsets[3]], row.input_ids)
    assert bytes(group["row_id"][2]).hex() == row.row_id
    assert group["tempered_lse"].shape == (offsets[-1] - 3, 1)


def test_equal_shards_are_equal_bytes_with_one_file_an_array(
    tmp_path: Path, rows: dict[Split, list[Row]], positions: dict[str, Positions], logit_store: Artifact
) -> None:
    header = LogitFormat.model_validate(opened(logit_store).schema.model_dump(include=set(LogitFormat.model_fields)))
    plan = ShardPlan(name="train-00000", split="train", first_row=0, num_rows=3)
    for name in ("a", "b"):
        write_shard(tmp_path / name, plan, header, rows["train"][:3], positions["train-00000"])
    assert tree_sha256(tmp_path / "a") == tree_sha256(tmp_path / "b")
    chunks = [path for path in (tmp_path / "a").rglob("*") if path.is_file() and path.name != "zarr.json"]
    assert len(chunks) == 11


def test_rows_and_positions_that_do_not_fit_are_not_written(
    tmp_path: Path, rows: dict[Split, list[Row]], positions: dict[str, Positions], logit_store: Artifact
) -> None:
    form = LogitFormat.model_validate(opened(logit_store).schema.model_dump(include=set(LogitFormat.model_fields)))
    plan = ShardPlan(name="train-00000", split="train", first_row=0, num_rows=3)
    with pytest.raises(ValueError, match="got 3 rows of 306 tokens and 302 positions"):
        write_shard(tmp_path / "x", plan, form, rows["train"][:3], positions["train-00000"].cut(0, 302))


def test_another_tokenizer_or_vocabulary_is_refused(logit_store: Artifact) -> None:
    reader = opened(logit_store)
    reader.require("t" * 64, 300)
    with pytest.raises(BadInputError, match="dumped with tokenizer tttttttttttttttt, this model has uuuu"):
        reader.require("u" * 64, 300)
    with pytest.raises(BadInputError, match="over 300 tokens, this model's tokenizer has 301"):
        reader.require("t" * 64, 301)


def test_missing_rows_splits_and_shards_are_named(logit_store: Artifact) -> None:
    reader = opened(logit_store)
    with pytest.raises(ObjectMissingError, match="no logits for row abcd in split train"):
        reader.rows("train").index_of("abcd")
    with pytest.raises(IndexError, match="row 7 of split train"):
        reader.rows("train")[7]
    manifest = manifest_of(logit_store)
    without = manifest.model_copy(
        update={"objects": tuple(entry for entry in manifest.objects if not entry.name.startswith("train-00001/"))}
    )
    broken = LogitReader(logit_store.store, logit_store.directory, without).rows("train")
    assert broken[2].row_id
    with pytest.raises(ObjectMissingError, match="no shard train-00001"):
        broken[3]


def test_a_lost_object_is_an_error_and_not_zeros(logit_store: Artifact) -> None:
    object_file(logit_store, "train-00000/topk_logprobs/c/0/0").unlink()
    with pytest.raises(ObjectMissingError, match="topk_logprobs/c/0/0 of shard train-00000 is missing"):
        opened(logit_store).rows("train")[0]
    assert opened(logit_store).rows("heldout")[0].row_id


def test_a_flipped_bit_is_an_error_at_the_read(logit_store: Artifact) -> None:
    file = object_file(logit_store, "train-00000/topk_ids/c/0/0")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError, match="train-00000"):
        opened(logit_store).rows("train")[2]


def test_verify_is_silent_on_a_good_store_and_names_what_is_wrong(logit_store: Artifact) -> None:
    manifest = manifest_of(logit_store)
    check = (logit_store.store, logit_store.directory)
    assert verify(*check, manifest) == []

    schema_file = object_file(logit_store, "logits.json")
    schema = json.loads(schema_file.read_text())
    schema["shards"] = [entry for entry in schema["shards"] if entry["name"] != "train-00001"]
    schema_file.write_text(json.dumps(schema))
    problems = "\n".join(verify(*check, manifest))
    assert "logits.json" in problems
    assert "rows 3 to 5 of split train are missing" in problems


def test_verify_reads_what_was_committed_wrong(
    logit_store: Artifact, tmp_path: Path, artifact_of: Callable[..., Artifact]
) -> None:
    group = zarr.open_group(LocalStore(tmp_path / "logits" / "heldout-00000"), mode="r+")
    input_ids = group["input_ids"][:]
    input_ids[3] += 1
    group["input_ids"][:] = input_ids
    values = group["topk_logprobs"][:]
    values[0] += 2
    values[5] = values[5, ::-1]
    group["topk_logprobs"][:] = values
    bad = artifact_of(tmp_path / "logits")
    problems = "\n".join(verify(bad.store, bad.directory, manifest_of(bad)))
    assert "heldout-00000 row 0 has other tokens than its id" in problems
    assert "has more mass than one at position 0" in problems
    assert "is not in descending order at position 5" in problems
    assert "train-0" not in problems
