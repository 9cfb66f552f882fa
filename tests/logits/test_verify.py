"""Every kind of damage to a logit store is named in one sentence with the path of the object."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tasks.artifacts.artifact import Artifact, encode_record
from tasks.artifacts.manifest import InputRecord, Manifest, digest_of
from tasks.artifacts.store import open_store
from tasks.logits.codec import DocumentCodec
from tasks.logits.faults import position_faults
from tasks.logits.positions import Positions
from tasks.logits.prior import write_prior
from tasks.logits.rows import Row
from tasks.logits.schema import LogitFormat, ShardPlan, Split
from tasks.logits.verify import Checked, verify
from tests.committed import manifest_of
from tests.logits.conftest import make_format, make_positions, make_prior, make_row, write_store
from tests.logits.whole_shard import write_shard
from tests.seaweed import BUCKET, SeaweedServer

Rows = dict[Split, list[Row]]
Shards = dict[str, Positions]
ArtifactOf = Callable[..., Artifact]


def uri_of(artifact: Artifact, name: str) -> str:
    entry = manifest_of(artifact).object(name)
    assert entry is not None
    return f"{artifact.uri}/{entry.path}"


def problems_of(artifact: Artifact, manifest: Manifest | None = None) -> list[str]:
    return verify(artifact.store, artifact.directory, manifest or manifest_of(artifact))


def flip(file: Path, place: int | None = None) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 1
    file.write_bytes(data)


@pytest.fixture
def folder(tmp_path: Path, rows: Rows, positions: Shards) -> Path:
    """The objects of a good store, to be damaged and then committed."""
    return write_store(tmp_path / "logits", make_format(), rows, positions)


def put_shard(folder: Path, rows: Rows, positions: Shards, num_rows: int = 3, **fields: object) -> None:
    """Writes shard train-00001 anew: of a store with another format, or shorter."""
    shutil.rmtree(folder / "train-00001")
    form = make_format(**fields)
    prior = make_prior() if "prior_digest" not in fields else make_prior(seed=1)
    plan = ShardPlan(name="train-00001", split="train", first_row=3, num_rows=num_rows)
    part = rows["train"][3 : 3 + num_rows]
    found = positions["train-00001"].cut(0, sum(len(row.input_ids) - 1 for row in part))
    write_shard(folder / "train-00001", plan, form, part, found, prior)


def test_a_whole_store_has_no_problem_and_its_progress_is_told(logit_store: Artifact) -> None:
    told: list[Checked] = []
    assert verify(logit_store.store, logit_store.directory, manifest_of(logit_store), told.append) == []
    assert [(checked.shards, checked.num_shards, checked.tokens) for checked in told] == [
        (1, 4, 306), (2, 4, 355), (3, 4, 445), (4, 4, 460)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "train-00001/documents/c/0/0/0",
        "train-00001/documents/zarr.json",
        "train-00001/offsets/c/0",
        "train-00001/row_id/c/0/0",
        "train-00001/zarr.json",
        "prior/id_of_place/c/0",
        "logits.json",
    ],
)
@pytest.mark.parametrize("damage", ["flipped", "short", "missing"])
def test_a_damaged_object_is_named_once(logit_store: Artifact, name: str, damage: str) -> None:
    file = Path(uri_of(logit_store, name))
    size = file.stat().st_size
    if damage == "missing":
        file.unlink()
    elif damage == "short":
        file.write_bytes(file.read_bytes()[:-7])
    else:
        flip(file, 0)
    said = {
        "missing": "is missing",
        "short": f"has {size - 7} bytes, the manifest says {size}",
        "flipped": "has other bytes than were committed",
    }[damage]
    problems = problems_of(logit_store)
    assert problems[0].startswith(f"{file} ({name}) {said}")
    # The list of shards is gone with logits.json, which is a second thing to say.
    assert len(problems) == (2 if name == "logits.json" else 1)
    if name.startswith("prior"):
        assert "no row can be decoded" in problems[0]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"teacher": {"weights_digest": "n" * 64}}, "is of another teacher: weights_digest nnnnnnnnnnnnnnnn, logits"),
        ({"teacher": {"weights_digest": "m" * 64, "dtype": "bfloat16"}}, "is of another teacher: dtype bfloat16, logi"),
        (
            {"tokenizer_digest": "u" * 64},
            "is of another tokenizer: uuuuuuuuuuuuuuuu, logits.json says tttttttt",
        ),
        ({"corpus_digest": "d" * 64}, "is of another corpus: dddddddddddddddd, logits.json says cccccccccccccccc"),
        ({"prior_digest": make_prior(seed=1).digest}, "was written with another prior: "),
        ({"values": "warped"}, "has another values: warped, logits.json says float32"),
        ({"num_rows": 2}, "has other rows than planned: num_rows 2, logits.json says 3"),
    ],
    ids=["teacher", "dtype", "tokenizer", "corpus", "prior", "values", "fewer rows"],
)
@pytest.mark.parametrize("committed", [True, False])
def test_a_shard_of_another_store_is_named(
    folder: Path,
    artifact_of: ArtifactOf,
    rows: Rows,
    positions: Shards,
    fields: dict[str, object],
    said: str,
    committed: bool,
) -> None:
    if committed:
        put_shard(folder, rows, positions, **fields)  # type: ignore[arg-type]
        bad = artifact_of(folder)
        where = uri_of(bad, "train-00001/zarr.json")
        [problem] = problems_of(bad)
        assert problem.startswith(f"{where} (shard train-00001) {said}")
        return
    # Copied over the committed one: the checksums do not fit either.
    bad = artifact_of(folder)
    put_shard(folder, rows, positions, **fields)  # type: ignore[arg-type]
    root = Path(uri_of(bad, "train-00001/zarr.json"))
    shutil.copytree(folder / "train-00001", root.parent, dirs_exist_ok=True)
    [problem] = [problem for problem in problems_of(bad) if str(root) in problem]
    assert said in problem


def test_another_prior_is_named_once_and_not_for_each_shard(folder: Path, artifact_of: ArtifactOf) -> None:
    shutil.rmtree(folder / "prior")
    write_prior(folder / "prior", make_prior(seed=1))
    bad = artifact_of(folder)
    [problem] = problems_of(bad)
    where = uri_of(bad, "prior/zarr.json")
    assert problem.startswith(f"{where} (prior/zarr.json) is another prior: {make_prior(seed=1).digest[:16]}, ")


def test_a_prior_that_is_not_the_one_of_its_own_digest_is_named(folder: Path, artifact_of: ArtifactOf) -> None:
    root = folder / "prior" / "zarr.json"
    other = folder.parent / "other"
    write_prior(other, make_prior(seed=1))
    record = json.loads((other / "zarr.json").read_text())
    record["attributes"]["digest"] = make_prior().digest
    shutil.rmtree(folder / "prior")
    shutil.copytree(other, folder / "prior")
    root.write_text(json.dumps(record))
    [problem] = problems_of(artifact_of(folder))
    assert "is not the prior that its digest names" in problem


def test_an_object_that_the_manifest_lost_is_named_although_zarr_reads_zeros(logit_store: Artifact) -> None:
    manifest = manifest_of(logit_store)
    kept = tuple(entry for entry in manifest.objects if entry.name != "train-00001/documents/c/0/0/0")
    shorter = manifest.model_copy(update={"objects": kept, "digest": digest_of(kept)})
    [problem] = problems_of(logit_store, shorter)
    assert problem.startswith(f"{logit_store.uri}/manifest.json lists no train-00001/documents/c/0/0/0, which ")
    kept = tuple(entry for entry in manifest.objects if not entry.name.startswith("train-00001/"))
    shorter = manifest.model_copy(update={"objects": kept, "digest": digest_of(kept)})
    [problem] = problems_of(logit_store, shorter)
    assert problem.endswith("lists no train-00001/zarr.json: rows 3 to 5 of split train are missing")


def test_gaps_and_inputs_of_logits_json_are_named(folder: Path, artifact_of: ArtifactOf) -> None:
    schema = json.loads((folder / "logits.json").read_text())
    schema["shards"] = [entry for entry in schema["shards"] if entry["name"] != "train-00001"]
    (folder / "logits.json").write_text(json.dumps(schema))
    bad = artifact_of(folder)
    [problem] = problems_of(bad)
    where = uri_of(bad, "logits.json")
    assert problem == f"{where}: rows 3 to 5 of split train are missing: no shard train-00001 has them"

    inputs = {"teacher": InputRecord(key="k" * 64, digest="n" * 64, directory="artifacts/models/x")}
    problems = problems_of(bad, manifest_of(bad).model_copy(update={"inputs": inputs}))
    said = "is of another teacher: mmmmmmmmmmmmmmmm, the manifest was made from nnnnnnnnnnnnnnnn"
    assert problems[0] == f"{where} {said}"


def test_rows_whose_tokens_are_not_those_of_their_id_are_named_and_the_rest_counted(
    folder: Path, artifact_of: ArtifactOf, rows: Rows, positions: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong: Rows = {"train": [replace(row, row_id=make_row(9, 99).row_id) for row in rows["train"]]}
    put_shard(folder, wrong, positions)
    bad = artifact_of(folder)
    where = str(Path(uri_of(bad, "train-00001/zarr.json")).parent)
    problems = problems_of(bad)
    assert [problem.split(" has other tokens than its id ")[0] for problem in problems] == [
        f"{where} (shard train-00001) row {index}" for index in (3, 4, 5)
    ]
    monkeypatch.setattr("tasks.logits.verify.MAX_NAMED", 1)
    assert problems_of(bad) == [problems[0], f"{where} (shard train-00001) has 2 more faults in its rows"]


def test_wrong_distributions_of_a_committed_shard_are_named(
    folder: Path, artifact_of: ArtifactOf, rows: Rows, positions: Shards
) -> None:
    there = positions["train-00001"]
    gold_P = there.gold_logprob_P.copy()
    gold_P[7] = -0.01
    put_shard(folder, rows, {"train-00001": replace(there, gold_logprob_P=gold_P)})
    problems = problems_of(artifact_of(folder))
    # Position 7 of the shard is position 6 of its second row: the first has one.
    assert problems
    assert all("(shard train-00001) row 4 has a" in problem for problem in problems)
    assert all(problem.endswith("at position 6") for problem in problems)


def changed(positions: Positions, name: str, place: tuple[int, ...], value: float) -> Positions:
    array = getattr(positions, name).copy()
    array[place] = value
    return replace(positions, **{name: array})


@pytest.mark.parametrize(
    ("name", "place", "value", "fault"),
    [
        ("topk_logprobs_PK", (2, 3), np.nan, "holds a number that is not one"),
        ("tail_logprob_P", (2,), np.nan, "holds a number that is not one"),
        ("topk_ids_PK", (2, 3), 300, "has an id outside the vocabulary"),
        ("topk_ids_PK", (2, 7), -1, "has an id without probability or a probability without id"),
        ("topk_logprobs_PK", (2, 3), -9.0, "is not in descending order"),
        ("topk_logprobs_PK", (2, 0), 0.0, "has more mass than one"),
        ("topk_logprobs_PK", (2, 0), -20.0, "has less mass than one"),
        ("tail_logprob_P", (2,), -20.0, "has less mass than one"),
        ("tempered_lse_PM", (2, 0), 0.1, "has a normaliser and a tail at temperature 2 that do not fit its entries"),
        ("tempered_tail_PM", (2, 0), -30.0, "has a normaliser and a tail at temperature 2 that do not fit its entries"),
    ],
)
def test_each_fault_of_a_position_is_found_where_it_is(
    name: str, place: tuple[int, ...], value: float, fault: str
) -> None:
    row = make_row(6, 1)
    good = make_positions([row], 2, temperature=2.0)
    form = make_format()
    codec = DocumentCodec(form, make_prior())
    gold_P = row.input_ids[1:]
    assert not any(at_P.any() for at_P in position_faults(good, gold_P, form, codec).values())
    found = position_faults(changed(good, name, place, value), gold_P, form, codec)
    assert np.flatnonzero(found[fault]).tolist() == [2]


def test_an_id_twice_and_a_gold_token_that_should_have_been_kept_are_found() -> None:
    row = make_row(6, 1)
    good = make_positions([row], 2, temperature=2.0)
    form = make_format()
    codec = DocumentCodec(form, make_prior())
    twice = changed(good, "topk_ids_PK", (1, 5), int(good.topk_ids_PK[1, 4]))
    found = position_faults(twice, row.input_ids[1:], form, codec)
    assert np.flatnonzero(found["has an id twice"]).tolist() == [1]

    gold_P = row.input_ids[1:].copy()
    gold_P[3] = good.topk_ids_PK[3, 2]
    found = position_faults(good, gold_P, form, codec)
    assert np.flatnonzero(
        found["has a kept following token with another probability than is stored of it"]
    ).tolist() == [3]

    likelier = changed(good, "gold_logprob_P", (0,), float(good.topk_logprobs_PK[0, -1]) + 0.01)
    found = position_faults(likelier, row.input_ids[1:], form, codec)
    said = "has a following token outside the kept ones that is likelier than the last of these"
    assert np.flatnonzero(found[said]).tolist() == [0]


SUPPORTS: dict[str, dict[str, object]] = {
    "top_k": {"kind": "top_k", "num_kept": 8},
    "adaptive": {"kind": "adaptive", "min_probability": 0.01, "max_kept": 8},
    "sampled": {"kind": "sampled", "num_draws": 8},
}


def supported(row: Row, kind: str) -> Positions:
    """Positions of a row as the support leaves them, at temperatures 1 and 2."""
    vocab = np.random.default_rng(row.num_tokens).normal(0, 3, (row.num_tokens - 1, 300))
    logprobs_PV = vocab - np.log(np.exp(vocab).sum(1, keepdims=True))
    order_PV = np.argsort(-logprobs_PV, axis=1, kind="stable")
    num_positions = len(logprobs_PV)
    counts_PK = np.zeros((num_positions, 0), np.uint16)
    ids_PK = order_PV[:, :8].astype(np.int32)
    if kind == "sampled":
        ids_PK = np.full((num_positions, 8), -1, np.int32)
        counts_PK = np.zeros((num_positions, 8), np.uint16)
        for at, logprobs_V in enumerate(logprobs_PV):
            drawn, counts = np.unique(
                np.random.default_rng(at).choice(300, 8, p=np.exp(logprobs_V)), return_counts=True
            )
            by = np.argsort(-logprobs_V[drawn], kind="stable")
            ids_PK[at, : len(drawn)], counts_PK[at, : len(drawn)] = drawn[by], counts[by]
    values_PK = np.where(ids_PK >= 0, np.take_along_axis(logprobs_PV, np.maximum(ids_PK, 0), 1), -np.inf)
    if kind == "adaptive":
        left_out_PK = values_PK < np.log(0.01)
        left_out_PK[:, 0] = False
        values_PK, ids_PK = (
            np.where(left_out_PK, -np.inf, values_PK),
            np.where(left_out_PK, -1, ids_PK).astype(np.int32),
        )
    outside_PV = np.ones_like(logprobs_PV, bool)
    for at in range(num_positions):
        outside_PV[at, ids_PK[at][ids_PK[at] >= 0]] = False
    lse_P = np.log(np.exp(logprobs_PV / 2).sum(1))
    return Positions(
        ids_PK,
        values_PK.astype(np.float32),
        np.log((np.exp(logprobs_PV) * outside_PV).sum(1)).astype(np.float32),
        logprobs_PV[np.arange(num_positions), row.input_ids[1:]].astype(np.float32),
        lse_P[:, None].astype(np.float32),
        (np.log((np.exp(logprobs_PV / 2) * outside_PV).sum(1)) - lse_P)[:, None].astype(np.float32),
        counts_PK,
    )


@pytest.mark.parametrize("kind", list(SUPPORTS))
@pytest.mark.parametrize("values", ["warped", "float16", "float32"])
def test_rounding_alone_is_never_a_fault_whatever_the_format(
    kind: str, values: str, tmp_path: Path, artifact_of: ArtifactOf
) -> None:
    rows: Rows = {"train": [make_row(length, length) for length in (2, 1, 200, 300)]}
    parts = [supported(row, kind) for row in rows["train"]]
    shards = {"train-00000": Positions.joined(parts[:3]), "train-00001": parts[3]}
    form = make_format(values, support=SUPPORTS[kind])
    assert problems_of(artifact_of(write_store(tmp_path / "store", form, rows, shards))) == []


def test_faults_of_a_support_are_found() -> None:
    row = make_row(6, 1)
    prior = make_prior()

    def faults(positions: Positions, form: LogitFormat) -> list[str]:
        found = position_faults(positions, row.input_ids[1:], form, DocumentCodec(form, prior))
        return [fault for fault, at_P in found.items() if at_P.any()]

    sampled = supported(row, "sampled")
    form = make_format(support=SUPPORTS["sampled"])
    assert faults(sampled, form) == []
    assert faults(changed(sampled, "counts_PK", (1, 0), 9), form) == ["has other than 8 draws"]
    # What is only a top 8 holds entries that the adaptive rule leaves out.
    adaptive = make_format(support=SUPPORTS["adaptive"])
    assert faults(supported(row, "adaptive"), adaptive) == []
    assert faults(supported(row, "top_k"), adaptive) == ["keeps an entry below probability 0.01"]


def test_damage_on_s3_is_named_with_its_uri(server: SeaweedServer, logit_store: Artifact) -> None:
    manifest = manifest_of(logit_store)
    there = Artifact(open_store(f"s3://{BUCKET}/runs"), logit_store.directory)
    for entry in manifest.objects:
        there.store.put(there.path(entry.path), logit_store.store.get(logit_store.path(entry.path)))
    there.store.create(there.path("manifest.json"), encode_record(manifest))
    assert problems_of(there) == []

    flipped, lost = "train-00000/documents/c/0/0/0", "heldout-00000/row_id/c/0/0"
    paths = {
        name: there.path(next(entry.path for entry in manifest.objects if entry.name == name))
        for name in (flipped, lost)
    }
    data = bytearray(there.store.get(paths[flipped]))
    data[100] ^= 1
    there.store.put(paths[flipped], bytes(data))
    there.store.delete(paths[lost])
    assert problems_of(there) == [
        f"s3://{BUCKET}/runs/{paths[flipped]} ({flipped}) has other bytes than were committed",
        f"s3://{BUCKET}/runs/{paths[lost]} ({lost}) is missing",
    ]
