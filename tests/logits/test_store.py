"""The store on disk: what is written is what is read, in any order, and nothing missing is read as zeros."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError, CorruptArtifactError, ObjectMissingError, StoreError
from tasks.artifacts.fingerprint import tree_sha256
from tasks.logits.positions import Positions
from tasks.logits.prior import write_prior
from tasks.logits.reader import LogitReader, LogitRow
from tasks.logits.rows import Row, row_id_of
from tasks.logits.schema import ShardPlan, Split, plan_shards
from tasks.logits.verify import verify
from tasks.logits.writer import ShardWriter
from tests.committed import manifest_of
from tests.logits.conftest import make_format, make_positions, make_prior, make_row, write_store
from tests.logits.readme_decoder import read_document
from tests.logits.whole_shard import write_shard


def opened(artifact: Artifact, cache_bytes: int = 2**20) -> LogitReader:
    return LogitReader(artifact.store, artifact.directory, manifest_of(artifact), cache_bytes)


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
            assert found.row_id(index) == row.row_id
            assert (got.input_ids.dtype, got.topk_ids_PK.dtype) == (np.int32, np.int32)
            np.testing.assert_array_equal(got.input_ids, row.input_ids)
            np.testing.assert_array_equal(got.loss_mask, row.loss_mask)
            np.testing.assert_array_equal(got.topk_ids_PK, all_positions.topk_ids_PK[start:stop])
            np.testing.assert_array_equal(got.gold_logprob_P, all_positions.gold_logprob_P[start:stop])
            for name, unit in {
                "topk_logprobs_PK": 0.0,
                "tail_logprob_P": 0.0,
                "tempered_lse_PM": 1 / 512,
                "tempered_tail_PM": 1 / 256,
            }.items():
                expected_values = getattr(all_positions, name)[start:stop]
                np.testing.assert_allclose(getattr(got, name), expected_values, rtol=1e-6, atol=unit / 2 + 1e-6)
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


@pytest.mark.parametrize("documents_per_chunk", [1, 2, 16])
@pytest.mark.parametrize("values", ["warped", "float16"])
def test_chunks_of_several_documents_read_as_single_ones(
    tmp_path: Path,
    artifact_of: Callable[..., Artifact],
    rows: dict[Split, list[Row]],
    positions: dict[str, Positions],
    documents_per_chunk: int,
    values: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Objects of one or two documents, so that a shard has several and its last is short.
    monkeypatch.setattr("tasks.logits.writer.OBJECT_BYTES", 20_000)
    single = artifact_of(write_store(tmp_path / "single", make_format(values), rows, positions))
    form = make_format(values, documents_per_chunk=documents_per_chunk)
    other = artifact_of(write_store(tmp_path / "other", form, rows, positions))
    for split, part in rows.items():
        for index in range(len(part)):
            assert_equal_rows(opened(other).rows(split)[index], opened(single).rows(split)[index])
    assert verify(other.store, other.directory, manifest_of(other)) == []
    if documents_per_chunk == 1:
        assert sum("train-00000/documents/c/" in entry.name for entry in manifest_of(other).objects) > 1


def test_each_row_is_decoded_once_under_shuffled_access(logit_store: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[object] = []
    plain = zarr.Array.__getitem__

    def counted(array: zarr.Array, selection: object) -> object:
        if array.path == "documents":
            reads.append(selection)
        return plain(array, selection)

    monkeypatch.setattr(zarr.Array, "__getitem__", counted)
    found = opened(logit_store).rows("train")
    for index in [4, 0, 6, 2, 5, 3] * 5:
        found[index]
    assert len(reads) == 6


def test_few_shards_are_open_however_many_there_are(logit_store: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.logits.reader.MAX_OPEN_SHARDS", 1)
    reader = opened(logit_store)
    assert [reader.rows("train")[index].row_id for index in (0, 6, 3, 0)]
    assert len(reader._shards) == 1


@pytest.mark.parametrize("support", ["top_k", "adaptive", "sampled"])
@pytest.mark.parametrize("vocab_size", [300, 70_000])
def test_plain_zarr_and_numpy_read_a_shard_as_the_readme_says(
    support: str, vocab_size: int, tmp_path: Path, artifact_of: Callable[..., Artifact]
) -> None:
    plain = [make_row(length, length) for length in (5, 1, 40)]
    positions = make_positions(plain, 3)
    # The last 300 ids, so that places need three bytes.
    positions.topk_ids_PK[:] += vocab_size - 300
    shifted = [row.input_ids + np.int32(vocab_size - 300) for row in plain]
    rows: dict[Split, list[Row]] = {
        "train": [replace(row, input_ids=ids, row_id=row_id_of(ids)) for row, ids in zip(plain, shifted, strict=True)]
    }
    kind: dict[str, object] = {"kind": support}
    if support != "top_k":
        kind["max_kept" if support == "adaptive" else "num_draws"] = 8
        left_out_PK = np.arange(8) >= np.random.default_rng(0).integers(1, 9, len(positions))[:, None]
        values_PK = np.where(left_out_PK, -np.inf, positions.topk_logprobs_PK)
        tail_P = np.log1p(-np.exp(values_PK.astype(np.float64)).sum(1)).astype(np.float32)
        counts_PK = np.where(left_out_PK, 0, 3).astype(np.uint16)
        positions = Positions(  # type: ignore[call-arg]
            np.where(left_out_PK, -1, positions.topk_ids_PK).astype(np.int32),
            values_PK.astype(np.float32),
            tail_P,
            *positions.arrays()[3:6],  # type: ignore[arg-type]
            counts_PK if support == "sampled" else counts_PK[:, :0],
        )
    else:
        kind["num_kept"] = 8
    form = make_format("warped", (), support=kind, vocab_size=vocab_size)
    directory = write_store(tmp_path / "store", form, rows, {"train-00000": positions})
    reader = opened(artifact_of(directory))
    for index in range(3):
        row = reader.rows("train")[index]
        document = read_document(directory, "train-00000", index)
        np.testing.assert_array_equal(document["input_ids"], row.input_ids)
        np.testing.assert_array_equal(document["loss_mask"], row.loss_mask)
        np.testing.assert_array_equal(document["ids"], row.topk_ids_PK)
        np.testing.assert_allclose(document["logprobs"], row.topk_logprobs_PK, atol=1e-5)
        np.testing.assert_allclose(document["tail"], row.tail_logprob_P, atol=1e-5)
        np.testing.assert_allclose(document["gold"], row.gold_logprob_P, atol=1e-5)
        if support == "sampled":
            np.testing.assert_array_equal(document["draws"], row.counts_PK)


def test_equal_shards_are_equal_bytes_in_whatever_order_rows_come(
    tmp_path: Path, rows: dict[Split, list[Row]], positions: dict[str, Positions]
) -> None:
    form, prior = make_format(), make_prior()
    plan = ShardPlan(name="train-00000", split="train", first_row=0, num_rows=3)
    write_shard(tmp_path / "a", plan, form, rows["train"][:3], positions["train-00000"], prior)
    writer = ShardWriter(tmp_path / "b", plan, form, rows["train"][:3], prior)
    bounds = [(0, 4), (4, 4), (4, 303)]
    for index in (2, 0, 1):
        writer.add(index, positions["train-00000"].cut(*bounds[index]))
    writer.close()
    assert tree_sha256(tmp_path / "a") == tree_sha256(tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    writer = ShardWriter(tmp_path / "c", plan, form, rows["train"][:3], prior)
    writer.add(1, positions["train-00000"].cut(4, 4))
    with pytest.raises(ValueError, match="row 1 of shard train-00000 was given twice"):
        writer.add(1, positions["train-00000"].cut(4, 4))
    with pytest.raises(ValueError, match="got no positions for its row 0"):
        writer.close()
    writer.discard()


def test_rows_and_positions_that_do_not_fit_are_not_written(
    tmp_path: Path, rows: dict[Split, list[Row]], positions: dict[str, Positions]
) -> None:
    plan = ShardPlan(name="train-00000", split="train", first_row=0, num_rows=3)
    writer = ShardWriter(tmp_path / "x", plan, make_format(), rows["train"][:3], make_prior())
    with pytest.raises(ValueError, match=r"\(3, 8\) entries for a document of 5 tokens"):
        writer.add(0, positions["train-00000"].cut(0, 3))
    writer.discard()
    with pytest.raises(ValueError, match="got 2 rows"):
        ShardWriter(tmp_path / "y", plan, make_format(), rows["train"][:2], make_prior())


def test_another_tokenizer_or_vocabulary_is_refused(logit_store: Artifact) -> None:
    reader = opened(logit_store)
    reader.require("t" * 64, 300)
    with pytest.raises(BadInputError, match="dumped with tokenizer tttttttttttttttt, this model has uuuu"):
        reader.require("u" * 64, 300)
    with pytest.raises(BadInputError, match="over 300 tokens, this model's tokenizer has 301"):
        reader.require("t" * 64, 301)


def test_missing_rows_splits_and_shards_are_named(logit_store: Artifact) -> None:
    reader = opened(logit_store)
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
    object_file(logit_store, "train-00000/documents/c/0/0/0").unlink()
    with pytest.raises(ObjectMissingError, match="documents/c/0/0/0 of shard train-00000 is missing"):
        opened(logit_store).rows("train")[0]
    assert opened(logit_store).rows("heldout")[0].row_id


def test_a_flipped_bit_is_an_error_at_the_read(logit_store: Artifact) -> None:
    file = object_file(logit_store, "train-00000/documents/c/0/0/0")
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


def test_a_store_with_another_prior_is_refused(
    tmp_path: Path,
    artifact_of: Callable[..., Artifact],
    rows: dict[Split, list[Row]],
    positions: dict[str, Positions],
) -> None:
    directory = write_store(tmp_path / "store", make_format(), rows, positions)
    shutil.rmtree(directory / "prior")
    write_prior(directory / "prior", make_prior(seed=1))
    with pytest.raises(CorruptArtifactError, match=r"the prior is \w{16}, logits.json says"):
        opened(artifact_of(directory)).rows("train")[0]
