"""Plain parquet: what a store exports is what it imports, and what other sets can get wrong is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.import_logits.export import export, store_of
from tasks.import_logits.stage import ImportLogitsGates, judge
from tasks.logits.codec import DocumentCodec
from tasks.logits.positions import Positions
from tasks.logits.prior import Prior, write_prior
from tasks.logits.reader import LogitReader
from tasks.logits.rows import Row
from tasks.logits.schema import LogitFormat, LogitSchema, ShardEntry, TeacherRecord, plan_shards
from tasks.modeling.tokenizer_files import tokenizer_digest
from tests.committed import metrics_of
from tests.import_logits.sets import KINDS, documents, largest, logprobs_PV, write_plain
from tests.import_logits.test_distillkit import rows_of
from tests.logits.whole_shard import write_shard
from tests.training.parts import VOCAB, make_model, make_tokenizer, model_directory

SUPPORTS: list[dict[str, Any]] = [
    {"kind": "top_k", "num_kept": 6},
    {"kind": "adaptive", "min_probability": 0.02, "max_kept": 9},
    {"kind": "sampled", "num_draws": 12},
]


def truncated(row: Row, support: dict[str, Any], temperature: float) -> Positions:
    """What a dump with this support keeps, from the definition."""
    full_PV = logprobs_PV(row)
    width = support.get("num_kept") or support.get("max_kept") or support["num_draws"]
    ids_PK, values_PK = largest(full_PV, width)
    counts_PK = np.empty((len(ids_PK), 0), np.uint16)
    kept_PK = np.ones(ids_PK.shape, bool)
    if support["kind"] == "adaptive":
        kept_PK = values_PK >= np.log(support["min_probability"])
        kept_PK[:, 0] = True
    if support["kind"] == "sampled":
        generator = np.random.default_rng(0)
        drawn = [generator.multinomial(width, np.exp(full_P)) for full_P in full_PV]
        ids_PK = np.stack([np.lexsort((-full_P, counts == 0))[:width] for counts, full_P in zip(drawn, full_PV)])  # noqa: B905
        counts_PK = np.take_along_axis(np.stack(drawn), ids_PK, 1).astype(np.uint16)
        values_PK, kept_PK = np.take_along_axis(full_PV, ids_PK, 1), counts_PK > 0
    ids_PK = np.where(kept_PK, ids_PK, -1)
    values_PK = np.where(kept_PK, values_PK, -np.inf)
    lse_P1 = np.log(np.exp(full_PV / temperature).sum(1, keepdims=True))
    tempered_P1 = 1 - np.exp(values_PK / temperature - lse_P1).sum(1, keepdims=True)
    return Positions(
        ids_PK.astype(np.int32),
        values_PK.astype(np.float32),
        np.log(1 - np.exp(values_PK).sum(1)).astype(np.float32),
        full_PV[np.arange(len(full_PV)), row.input_ids[1:]].astype(np.float32),
        lse_P1.astype(np.float32),
        np.log(tempered_P1).astype(np.float32),
        counts_PK,
    )


def store_with(
    directory: Path, artifact_of: Callable[..., Artifact], support: dict[str, Any], values: str = "warped"
) -> Artifact:
    """A store of all three kinds of rows: long ones, one of two tokens, one of a single token."""
    rows = {"train": documents()[:11], "heldout": documents()[11:]}
    prior = Prior.from_counts(np.arange(VOCAB) % 7)
    form = LogitFormat.model_validate(
        {
            "values": values,
            "vocab_size": VOCAB,
            "support": support,
            "temperatures": (2.0,),
            "tokenizer_digest": tokenizer_digest(make_tokenizer()),
            "teacher": TeacherRecord(weights_digest="m" * 64, repo="a/teacher", dtype="float32"),
            "corpus_digest": "c" * 64,
            "prior_digest": prior.digest,
            "max_error_nats": 0.3,
            "documents_per_chunk": 2,
        }
    )
    write_prior(directory / "prior", prior)
    nothing = Positions.empty(0, form.width, 1, counted=support["kind"] == "sampled")
    entries = []
    num_rows: dict[Any, int] = {split: len(part) for split, part in rows.items()}
    for shard in plan_shards(num_rows, 4):
        part = rows[shard.split][shard.first_row : shard.first_row + shard.num_rows]
        found = [truncated(row, support, 2.0) if len(row.input_ids) > 1 else nothing for row in part]
        header = write_shard(directory / shard.name, shard, form, part, Positions.joined(found), prior)
        entries.append(ShardEntry(**shard.model_dump(), num_tokens=header.num_tokens, num_targets=header.num_targets))
    schema = LogitSchema(**form.model_dump(), rows_per_shard=4, num_rows=num_rows, shards=tuple(entries))
    (directory / "logits.json").write_text(schema.model_dump_json())
    return artifact_of(directory)


def exported(artifact: Artifact, target: Path) -> tuple[list[Path], list[Path]]:
    """The exported files of training and of held-out rows."""
    manifest = artifact.manifest()
    assert manifest is not None
    files = export(artifact.store, artifact.directory, manifest, target)
    return [file for file in files if "train" in file.name], [file for file in files if "heldout" in file.name]


@pytest.mark.parametrize("values", ["warped", "float32"])
@pytest.mark.parametrize("support", SUPPORTS, ids=lambda support: support["kind"])
def test_what_is_exported_is_imported(
    tmp_path: Path,
    artifact_of: Callable[..., Artifact],
    import_files: Callable[..., Artifact],
    support: dict[str, Any],
    values: str,
) -> None:
    first = store_with(tmp_path / "first", artifact_of, support, values)
    train, heldout = exported(first, tmp_path / "files")
    assert [file.name for file in train] == ["train-00000.parquet", "train-00001.parquet", "train-00002.parquet"]
    second = import_files(*train, heldout=tuple(heldout), values=values)
    before, after = rows_of(first), rows_of(second)
    assert before.keys() == after.keys()
    manifest = second.manifest()
    assert manifest is not None
    reader = LogitReader(second.store, second.directory, manifest)
    assert reader.schema.num_rows == {"train": 11, "heldout": 5}
    assert reader.schema.support.model_dump() == first_schema(first).support.model_dump()
    assert (reader.schema.temperatures, reader.schema.teacher.repo) == ((2.0,), "a/teacher")
    codec = DocumentCodec(reader.schema, reader.prior())
    for row_id, row in before.items():
        got = after[row_id]
        np.testing.assert_array_equal(got.loss_mask, row.loss_mask)
        np.testing.assert_array_equal(got.input_ids, row.input_ids)
        if values == "float32":
            np.testing.assert_array_equal(got.topk_ids_PK, row.topk_ids_PK)
        assert np.array_equal(np.sort(got.topk_ids_PK), np.sort(row.topk_ids_PK))
        np.testing.assert_array_equal(got.counts_PK.sum(1), row.counts_PK.sum(1))
        kept = np.exp(row.topk_logprobs_PK.astype(np.float64)).sum(1)
        finite = np.isfinite(row.topk_logprobs_PK)
        values_PK = np.where(finite, row.topk_logprobs_PK, np.float32(0))
        bound_PK = codec.error_bound(values_PK, np.maximum(kept, 1e-9)[:, None])
        assert (np.abs(got.topk_logprobs_PK[finite] - values_PK[finite]) <= bound_PK[finite]).all()
        np.testing.assert_allclose(got.gold_logprob_P, row.gold_logprob_P, atol=0.3 if values == "warped" else 1e-5)
        np.testing.assert_allclose(got.tail_logprob_P, row.tail_logprob_P, atol=0.01)
        np.testing.assert_allclose(got.tempered_lse_PM, row.tempered_lse_PM, atol=1e-6)
        np.testing.assert_allclose(got.tempered_tail_PM, row.tempered_tail_PM, atol=1e-6)
    found = metrics_of(second)
    assert found["gold_known"] == 1
    assert found["excess_mass"] < 1e-5


def first_schema(artifact: Artifact) -> LogitSchema:
    manifest = artifact.manifest()
    assert manifest is not None
    return LogitReader(artifact.store, artifact.directory, manifest).schema


def test_the_command_writes_the_files_and_goes_on(tmp_path: Path, artifact_of: Callable[..., Artifact]) -> None:
    artifact = store_with(tmp_path / "store-of", artifact_of, SUPPORTS[0])
    uri, target = artifact.uri, tmp_path / "out"
    command = [sys.executable, "-m", "tasks.import_logits.export", uri, str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"wrote 5 files to {target}\n"
    stamp = (target / "train-00000.parquet").stat().st_mtime_ns
    (target / "train-00001.parquet").unlink()
    assert len(exported(artifact, target)[0]) == 3
    assert (target / "train-00000.parquet").stat().st_mtime_ns == stamp
    table = pq.read_table(target / "train-00000.parquet")
    assert table.column("input_ids")[0].as_py() == documents()[0].input_ids.tolist()
    assert len(table.column("token_ids")[0].as_py()) == len(documents()[0].input_ids) - 1
    other = store_with(tmp_path / "other", artifact_of, SUPPORTS[1])
    with pytest.raises(BadInputError, match=r"is not of .*; give an empty folder"):
        exported(other, target)
    with pytest.raises(BadInputError, match="is no artifact"):
        store_of("/somewhere/else")
    failed = subprocess.run([*command[:3], f"{uri}-not-there", str(target)], capture_output=True, text=True)
    assert failed.returncode == 2
    assert "is not finished or not there" in failed.stderr


def test_a_set_that_says_little(tmp_path: Path, import_files: Callable[..., Artifact]) -> None:
    """Ids and log-probabilities alone: mask, tail and support follow from them."""
    rows = documents()
    metrics = metrics_of(artifact := import_files(write_plain(tmp_path / "a.parquet", rows)))
    for row in rows:
        got = rows_of(artifact)[row.row_id]
        assert got.loss_mask.tolist() == [0, *[1] * (len(row.input_ids) - 1)]
        if len(row.input_ids) == 1:
            continue
        full_PV = logprobs_PV(row)
        ids_PK, values_PK = largest(full_PV, 6)
        np.testing.assert_array_equal(got.topk_ids_PK, ids_PK)
        np.testing.assert_allclose(np.exp(got.tail_logprob_P), 1 - np.exp(values_PK).sum(1), atol=1e-5)
        gold_P = row.input_ids[1:]
        kept_P = (ids_PK == gold_P[:, None]).any(1)
        true_P = full_PV[np.arange(len(full_PV)), gold_P]
        np.testing.assert_allclose(got.gold_logprob_P[kept_P], true_P[kept_P], atol=1e-5)
        spread_P = np.minimum(np.log(1 - np.exp(values_PK).sum(1)) - np.log(VOCAB - 6), values_PK[:, -1])
        np.testing.assert_allclose(got.gold_logprob_P[~kept_P], spread_P[~kept_P], atol=1e-5)
    assert metrics["rows"] == len(rows)
    assert metrics["tokens"] == sum(len(row.input_ids) for row in rows)
    assert metrics["entries_per_position"] == 6


def test_held_out_documents_are_a_function_of_their_tokens(
    tmp_path: Path, import_files: Callable[..., Artifact]
) -> None:
    """Whatever the files and their order; and a document that comes twice is there once."""
    rows = documents()
    one = import_files(write_plain(tmp_path / "one.parquet", rows))
    paths = [write_plain(tmp_path / "two" / f"{part}.parquet", rows[::-1][part::2]) for part in range(2)]
    again = write_plain(tmp_path / "two" / "again.parquet", rows[:3])
    two = import_files(*paths, again)

    def heldout(artifact: Artifact) -> set[str]:
        manifest = artifact.manifest()
        assert manifest is not None
        part = LogitReader(artifact.store, artifact.directory, manifest).rows("heldout")
        return {part.row_id(index) for index in range(len(part))}

    assert 0 < len(heldout(one)) < len(rows)
    assert heldout(one) == heldout(two)
    assert (metrics_of(two)["rows"], metrics_of(two)["duplicates"]) == (len(rows), 3)
    few = import_files(*paths, source={"max_rows": 6}, heldout=(again,))
    assert metrics_of(few)["rows"] == 9


def shifted(rows: list[Row], kind: str) -> dict[str, list[Any]]:
    """T positions: one more in front, or behind."""
    columns: dict[str, list[Any]] = {"token_ids": [], "logprobs": []}
    for row in rows:
        ids_PK, values_PK = largest(logprobs_PV(row), 6)
        for name, array in (("token_ids", ids_PK), ("logprobs", values_PK)):
            edge = [array[0] * 0 + ([1, 2, 3, 4, 5, 6] if name == "token_ids" else -3.0)]
            columns[name].append([list(line) for line in ([*edge, *array] if kind == "first" else [*array, *edge])])
    return columns


@pytest.mark.parametrize("kind", ["first", "last"])
def test_one_position_too_many_is_cut_where_the_recipe_says(
    tmp_path: Path, import_files: Callable[..., Artifact], kind: str
) -> None:
    rows = [row for row in documents() if len(row.input_ids) > 1]
    expected = rows_of(import_files(write_plain(tmp_path / "plain.parquet", rows)))
    path = write_plain(tmp_path / "long.parquet", rows, **shifted(rows, kind))
    got = rows_of(import_files(path, format={"kind": "plain", "extra_position": kind}))
    for row_id, row in expected.items():
        np.testing.assert_array_equal(got[row_id].topk_ids_PK, row.topk_ids_PK)
        np.testing.assert_array_equal(got[row_id].gold_logprob_P, row.gold_logprob_P)
    with pytest.raises(BadInputError, match=r"has 5 tokens and 5 positions, .* none, means 4"):
        import_files(path)


def sure(rows: list[Row], offset: int) -> dict[str, list[Any]]:
    """A teacher that gives 0.6 to the token that follows, `offset` places too early or too late."""
    ids, values = [], []
    for row in rows:
        tokens = [int(token) for token in row.input_ids]
        places = [min(max(place + offset, 0), len(tokens) - 1) for place in range(1, len(tokens))]
        ids.append([[(tokens[place] + step) % VOCAB for step in range(4)] for place in places])
        values.append([[np.log(0.6), *[np.log(0.1)] * 3]] * len(places))
    return {"token_ids": ids, "logprobs": values}


@pytest.mark.parametrize("offset", [-1, 1])
def test_a_shift_by_one_is_caught(tmp_path: Path, import_files: Callable[..., Artifact], offset: int) -> None:
    """With as many positions as there should be, only the numbers can tell."""
    rows = [row for row in documents() if len(row.input_ids) > 1]
    import_files(write_plain(tmp_path / "right.parquet", rows, **sure(rows, 0)))
    with pytest.raises(BadInputError, match=r"shifted by one: .* set recipe\.format\.extra_position"):
        import_files(write_plain(tmp_path / "wrong.parquet", rows, **sure(rows, offset)))


def test_a_gold_column_of_other_positions_is_caught(tmp_path: Path, import_files: Callable[..., Artifact]) -> None:
    rows = [row for row in documents() if len(row.input_ids) > 1]
    gold = [logprobs_PV(row)[np.arange(len(row.input_ids) - 1), row.input_ids[1:]].tolist() for row in rows]
    assert metrics_of(import_files(write_plain(tmp_path / "a.parquet", rows, gold_logprob=gold)))["gold_known"] == 1
    rolled = [[*line[1:], line[0]] for line in gold]
    with pytest.raises(BadInputError, match=r"differ by .* nats on average"):
        import_files(write_plain(tmp_path / "b.parquet", rows, gold_logprob=rolled))


ROW = {"input_ids": [[3, 9, 20]], "token_ids": [[[9, 4], [20, 5]]], "logprobs": [[[-0.5, -2.0], [-0.7, -1.0]]]}


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ({"token_ids": [[[9, 4], [VOCAB, 5]]]}, rf"row 0 keeps the token {VOCAB}, and the tokenizer has {VOCAB}"),
        ({"input_ids": [[3, 9, 77]]}, rf"row 0 has the token 77, and the tokenizer has {VOCAB}"),
        ({"input_ids": [[]], "token_ids": [[]], "logprobs": [[]]}, r"row 0 has no tokens"),
        ({"logprobs": [[[-0.5, -2.0], [-0.7]]]}, r"more ids than log-probabilities"),
        ({"logprobs": [[[-0.5, float("nan")], [-0.7, -1.0]]]}, r"no number at position 0"),
        (
            {"logprobs": [[[4.5, 2.0], [3.7, 1.0]]]},
            r"position 0 that sum to 97.41 as probabilities; if they are logits",
        ),
        ({"token_ids": [[[9, 4], [5, 5]]]}, r"keeps a token twice at position 1"),
        ({"token_ids": [[[], [20, 5]]], "logprobs": [[[], [-0.7, -1.0]]]}, r"no entry at position 0"),
        ({"loss_mask": [[0, 1]]}, r"3 tokens and a loss mask of 2 values"),
        ({"loss_mask": [[0, 1, 7]]}, r"must have a 0 or 1 for each"),
        ({"tail_logprob": [[-9.0, -9.0]]}, r"a tail at position 0 that are 0.742 together, and not 1"),
        ({"tail_logprob": [[-1.36]]}, r"2 positions and 1 values in tail"),
        ({"token_ids": None}, r"has no column token_ids, only input_ids, logprobs"),
        ({"token_ids": [[["a"]]]}, r"token_ids is .*string.* where it needs numbers"),
        ({"token_ids": [[9, 4]]}, r"token_ids is .*int64.* where lists are needed"),
    ],
)
def test_what_is_no_set_of_distributions_is_refused_in_a_sentence(
    tmp_path: Path, import_files: Callable[..., Artifact], columns: dict[str, Any], what: str
) -> None:
    import pyarrow as pa

    kinds = {} if "a" in str(columns) or "[[9, 4]]" in str(columns) else KINDS
    table = {name: pa.array(values, kinds.get(name)) for name, values in (ROW | columns).items() if values is not None}
    pq.write_table(pa.table(table), tmp_path / "set.parquet")
    with pytest.raises(BadInputError, match=what) as caught:
        import_files(tmp_path / "set.parquet", heldout_fraction=0)
    assert "\n" not in str(caught.value)
    assert "set.parquet" in str(caught.value)


def test_what_does_not_fit_the_recipe_is_refused(
    tmp_path: Path,
    artifact_of: Callable[..., Artifact],
    import_files: Callable[..., Artifact],
    run_stage: Callable[..., Artifact],
) -> None:
    path = write_plain(tmp_path / "set.parquet", documents())
    with pytest.raises(BadInputError, match="matches no file"):
        import_files(tmp_path / "other.parquet")
    with pytest.raises(
        BadInputError, match=r"keeps 6 entries at a position, and recipe\.support of import_logits holds 4"
    ):
        import_files(path, support={"kind": "top_k", "num_kept": 4})
    with pytest.raises(BadInputError, match="without which sampled support means nothing"):
        import_files(path, support={"kind": "sampled", "num_draws": 12})
    counts = [[[2] * 6] * (len(row.input_ids) - 1) for row in documents()]
    drawn = write_plain(tmp_path / "drawn.parquet", documents(), counts=counts)
    with pytest.raises(BadInputError, match="other than the 13 draws"):
        import_files(drawn, support={"kind": "sampled", "num_draws": 13})
    with pytest.raises(BadInputError, match=r"content_sha256 of recipe.source of import_logits says 000000000000"):
        import_files(path, source={"content_sha256": "0" * 64})
    with pytest.raises(BadInputError, match="both paths and heldout_paths"):
        import_files(path, heldout=(path,))
    with pytest.raises(BadInputError, match="different documents, 16 to train on and 0 held out"):
        import_files(path, heldout_fraction=1e-9)
    (tmp_path / "no.parquet").write_text("no")
    with pytest.raises(BadInputError, match=r"no\.parquet cannot be read as parquet"):
        import_files(path, tmp_path / "no.parquet")
    train, _ = exported(store_with(tmp_path / "store-of", artifact_of, SUPPORTS[0]), tmp_path / "files")
    with pytest.raises(BadInputError, match="was exported from another store"):
        import_files(path, *train)
    other = artifact_of(model_directory(tmp_path / "other", make_model(), vocab_size=VOCAB + 1))
    recipe = {"source": {"paths": [str(train[0])]}, "format": {"kind": "plain"}}
    with pytest.raises(BadInputError, match=r"exported with tokenizer .* of 60 tokens, .* with 61"):
        run_stage("import_logits", recipe, {"tokenizer": other})


def test_gates_judge_mass() -> None:
    good = judge({"captured_mass": 0.95, "excess_mass": 0.001}, ImportLogitsGates())
    assert [(result.gate, result.passed) for result in good] == [("min_captured_mass", True), ("max_excess_mass", True)]
    assert not any(result.passed for result in judge({"captured_mass": 0.5, "excess_mass": 0.1}, ImportLogitsGates()))
    assert not any(result.passed for result in judge({}, ImportLogitsGates()))
