"""`medius verify` and `medius inspect` with a URI: what they print, and their exit codes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tasks.artifacts.artifact import Artifact, encode_record
from tasks.artifacts.manifest import InputRecord
from tasks.logits.positions import Positions
from tasks.logits.rows import Row
from tasks.logits.schema import Split, plan_shards
from tasks.modeling.tokenizer_files import load_tokenizer, tokenizer_digest
from tests.committed import manifest_of
from tests.flows.conftest import Medius
from tests.flows.test_cli import micro_steps
from tests.logits.conftest import ROWS_PER_SHARD, VOCAB, make_format, make_positions, make_row, write_store

ArtifactOf = Callable[..., Artifact]
LENGTHS: dict[Split, list[int]] = {"train": [30, 1, 12, 7], "heldout": [9]}


def make_rows() -> dict[Split, list[Row]]:
    return {split: [make_row(length, length) for length in lengths] for split, lengths in LENGTHS.items()}


@pytest.fixture
def teacher(tmp_path: Path, artifact_of: ArtifactOf) -> Artifact:
    """A model's artifact as far as these commands look at it: a tokenizer whose words are w0, w1, … and some markup."""
    words = {f"w{index}": index for index in range(VOCAB)}
    words = {**{word: index for word, index in words.items() if index != 7}, "[/b]": 7}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(tmp_path / "teacher")
    return artifact_of(tmp_path / "teacher")


@pytest.fixture
def logits(tmp_path: Path, artifact_of: ArtifactOf, teacher: Artifact) -> Artifact:
    """A committed store that names its teacher."""
    rows = make_rows()
    shards = plan_shards({split: len(part) for split, part in rows.items()}, ROWS_PER_SHARD)
    positions: dict[str, Positions] = {
        shard.name: make_positions(
            rows[shard.split][shard.first_row : shard.first_row + shard.num_rows], seed=number, temperature=2.0
        )
        for number, shard in enumerate(shards)
    }
    digest = manifest_of(teacher).digest
    form = make_format(
        "warped",
        tokenizer_digest=tokenizer_digest(load_tokenizer(tmp_path / "teacher")),
        teacher={"weights_digest": digest, "repo": "owner/model", "revision": "abc123", "dtype": "bfloat16"},
    )
    artifact = artifact_of(write_store(tmp_path / "logits", form, rows, positions))
    inputs = {"teacher": InputRecord(key="k" * 64, digest=digest, directory=teacher.directory)}
    manifest = manifest_of(artifact).model_copy(update={"inputs": inputs})
    artifact.store.put(artifact.path("manifest.json"), encode_record(manifest))
    return artifact


def object_file(artifact: Artifact, name: str) -> Path:
    entry = manifest_of(artifact).object(name)
    assert entry is not None
    return Path(f"{artifact.uri}/{entry.path}")


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_inspect_says_what_a_store_is_and_shows_a_document_and_a_picture(medius: Medius, logits: Artifact) -> None:
    said = medius("inspect", logits.uri)
    assert said.code == 0, said
    lines = said.out.splitlines()
    assert lines[0] == logits.uri
    digest = manifest_of(logits).inputs["teacher"].digest
    assert f"teacher     owner/model at abc123, weights {digest[:16]}, bfloat16" in lines
    assert "support     the likeliest 8; normalised over all tokens at temperature 1, 2" in lines
    assert "rows        train 4 rows, 50 tokens; heldout 1 rows, 9 tokens; 3 shards" in lines
    size = sum(entry.size for entry in manifest_of(logits).objects)
    assert f"size        {size:,} bytes, {size / 59:.1f} a token, everything counted" in lines

    rows, first = make_rows()["train"], make_positions(make_rows()["train"][:3], seed=0, temperature=2.0)
    captured_P = np.exp(np.concatenate([first.topk_logprobs_PK, shard_of_the_last_row()])).sum(1)
    median = float(next(line for line in lines if line.startswith("captured")).split("p50 ")[1].split(",")[0])
    assert median == pytest.approx(np.median(captured_P), abs=2e-3)
    assert "entries     8.0 a position, 8 to 8" in lines

    assert f"row 0 of split train, id {rows[0].row_id}: 30 tokens, {rows[0].num_targets} targets" in lines
    table = [line.split("│")[1:-1] for line in lines if line.startswith("│")]
    assert len(table) == 20
    words = ["'[/b]'" if token == 7 else f"'w{token}'" for token in rows[0].input_ids.tolist()]
    assert [cells[1].strip() for cells in table] == words[:20]
    assert [cells[2].strip() for cells in table] == words[1:21]
    best = [f"{np.exp(value):.2f}" for value in first.topk_logprobs_PK[3, :5]]
    shown = table[3][4].split()
    assert shown[::2] == ["'[/b]'" if token == 7 else f"'w{token}'" for token in first.topk_ids_PK[3, :5]]
    np.testing.assert_allclose([float(value) for value in shown[1::2]], [float(value) for value in best], atol=0.02)
    assert float(table[3][3]) == pytest.approx(first.gold_logprob_P[3], abs=0.003)

    picture = Path(said.out.split()[-1])
    assert picture == Path("build/inspect") / f"{logits.directory.split('/')[-1]}-train.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def shard_of_the_last_row() -> np.ndarray:
    return make_positions(make_rows()["train"][3:], seed=1, temperature=2.0).topk_logprobs_PK


def test_a_document_is_chosen_by_split_row_or_id(medius: Medius, logits: Artifact) -> None:
    rows = make_rows()
    said = medius("inspect", logits.uri, "--split", "heldout", "--positions", "2")
    assert f"row 0 of split heldout, id {rows['heldout'][0].row_id}: 9 tokens" in said.out
    assert "positions 0 to 1 of 8" in said.out
    assert said.out.split()[-1].endswith("-heldout.png")
    said = medius("inspect", logits.uri, "--document", rows["train"][2].row_id[:12], "--positions", "99")
    assert f"row 2 of split train, id {rows['train'][2].row_id}: 12 tokens" in said.out
    assert "positions 0 to 10 of 11" in said.out
    said = medius("inspect", logits.uri, "--row", "1")
    assert said.code == 0
    assert f"id {rows['train'][1].row_id}: 1 tokens, 0 targets" in said.out


def test_without_the_tokenizer_ids_are_shown_and_it_is_said_why(
    medius: Medius, logits: Artifact, teacher: Artifact
) -> None:
    first = make_rows()["train"][0].input_ids
    object_file(teacher, "tokenizer.json").unlink()
    assert "tokens are shown as ids: " in medius("inspect", logits.uri).out
    teacher.store.delete(teacher.path("manifest.json"))
    said = medius("inspect", logits.uri, "--positions", "1")
    assert said.code == 0
    assert f"tokens are shown as ids: its teacher {teacher.uri} is not there" in said.out
    cells = next(line for line in said.out.splitlines() if line.startswith("│")).split("│")
    assert [cell.strip() for cell in cells[2:4]] == [str(first[0]), str(first[1])]


def test_inspect_loads_no_torch(logits: Artifact, tmp_path: Path) -> None:
    code = (
        "import sys; from flows.cli import app; app(standalone_mode=False); "
        "print({'torch', 'prefect'} & set(sys.modules), {'matplotlib.pyplot'} & set(sys.modules))"
    )
    arguments = [sys.executable, "-c", code, "inspect", logits.uri]
    result = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "set() set()"


def test_verify_takes_a_uri_or_a_key_and_reads_every_row(medius: Medius, logits: Artifact, teacher: Artifact) -> None:
    key = manifest_of(logits).key
    for arguments in ((logits.uri,), (f"{logits.uri}/",), (key[:16], "--store", logits.store.uri)):
        said = medius("verify", *arguments)
        assert said.code == 0, said
        assert f" {len(manifest_of(logits).objects)} objects, 3 shards, 59 tokens ok" in said.out
    said = medius("verify", teacher.uri)
    assert said.code == 0
    assert f" {len(manifest_of(teacher).objects)} objects ok" in said.out


def test_verify_ends_with_1_and_names_the_object(medius: Medius, logits: Artifact) -> None:
    file = object_file(logits, "train-00000/documents/c/0/0/0")
    flip(file)
    said = medius("verify", logits.uri)
    assert said.code == 1
    assert f"{file} (train-00000/documents/c/0/0/0) has other bytes than were committed" in said.out.splitlines()
    assert "59 tokens DAMAGED" in said.out
    assert said.err.startswith("medius: 1 problem was found; ")


def test_verify_of_a_profile_reads_the_rows_of_its_logits(medius: Medius, logits: Artifact) -> None:
    label = next(label for label in micro_steps() if label.startswith("logits-"))
    target = Path(logits.store.uri) / micro_steps()[label].directory
    shutil.copytree(logits.uri, target)
    said = medius("verify", "micro", "--store", logits.store.uri)
    assert said.code == 0
    assert "3 shards, 59 tokens ok" in said.out
    lost = next(target.rglob("heldout-00000*/row_id/c/0/0"))
    lost.unlink()
    said = medius("verify", "micro", "--store", logits.store.uri)
    assert said.code == 1
    assert f"{lost} (heldout-00000/row_id/c/0/0) is missing" in said.out


def test_recompute_without_the_teacher_says_so(medius: Medius, logits: Artifact, teacher: Artifact) -> None:
    teacher.store.delete(teacher.path("manifest.json"))
    said = medius("verify", logits.uri, "--recompute", "10")
    assert said.code == 0
    assert f"nothing was recomputed: its teacher {teacher.uri} is not there" in said.out


@pytest.mark.parametrize("verb", ["verify", "inspect"])
@pytest.mark.parametrize(
    ("target", "arguments", "what"),
    [
        ("{store}/artifacts/models/none-0123456789abcdef", (), "does not exist"),
        ("0123456789abcdef", ("--store", "{store}"), "has no artifact with key 0123456789abcdef"),
        ("{logits}", ("--store", "{store}"), "says which store it is in"),
        ("{begun}", (), "is not finished: it has no manifest.json"),
        ("s3:/bucket/artifacts/models/x", (), "unknown scheme"),
        ("{store}/artifacts/models", (), "artifacts/models"),
    ],
)
def test_what_is_no_artifact_ends_with_2(
    medius: Medius, logits: Artifact, verb: str, target: str, arguments: tuple[str, ...], what: str
) -> None:
    begun = Path(logits.store.uri) / "artifacts" / "models" / "begun-0123456789abcdee"
    (begun / "data").mkdir(parents=True)
    (begun / "data" / "x").write_text("x")
    places = {"store": logits.store.uri, "logits": logits.uri, "begun": str(begun)}
    said = medius(verb, target.format(**places), *(argument.format(**places) for argument in arguments))
    assert said.code == 2, said
    assert what in said.err
    assert len(said.err.splitlines()) == 1
    assert not Path("build").exists()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("inspect", "{teacher}"), "has no logits.json, so it is no logit store"),
        (("inspect", "{logits}", "--row", "4"), "split train of {logits} has rows 0 to 3, not 4"),
        (("inspect", "{logits}", "--document", "zz"), "has no row with id zz in split train"),
        (("inspect", "{logits}", "--split", "test"), "has no rows in split 'test', only in train, heldout"),
        (("verify", "{logits}", "--set", "a=1"), "is an artifact; leave them out"),
        (("verify", "{teacher}", "--recompute", "3"), "is no logit store, so there is nothing for --recompute"),
        (("verify", "{logits}", "--processes", "2"), "--processes are for --recompute or --against"),
    ],
)
def test_bad_arguments_end_with_2(
    medius: Medius, logits: Artifact, teacher: Artifact, arguments: tuple[str, ...], what: str
) -> None:
    places = {"logits": logits.uri, "teacher": teacher.uri}
    said = medius(*(argument.format(**places) for argument in arguments))
    assert said.code == 2, said
    assert what.format(**places) in said.err
