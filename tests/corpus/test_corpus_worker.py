"""The corpus stage from sources to files, under both tokenizers."""

from __future__ import annotations

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from tasks.artifacts.errors import BadInputError, CorruptArtifactError
from tasks.artifacts.fingerprint import file_sha256
from tasks.corpus.stage import STAGE, CorpusConfig, CorpusRecipe, FilesSource, StdlibCodeSource, StdlibDocsSource
from tasks.logits.enough_to_choose import HELDOUT_CONVERSATIONS, HELDOUT_TEXTS
from tasks.logits.heldout import HELDOUT_FILE, heldout_texts
from tasks.logits.rows import make_row, read_rows, row_id_of, write_rows
from tasks.modeling.tokenizer_files import load_tokenizer, tokenizer_digest

EXERCISES = {"kind": "exercises", "count": 20, "seed": 1}
TEXTS = [f"Document {number} speaks of {number * 37} things, of é and of ß.\n" * 3 for number in range(60)]


def test_two_tokenizers_hold_out_the_same_documents(write_corpus, text_files) -> None:
    recipe = {"sources": [text_files(TEXTS), EXERCISES], "max_tokens": 512}
    made = {family: write_corpus(family, **recipe) for family in ("llama", "qwen")}
    chats = {family: {row.text for row in value["heldout"] if row.kind == "chat"} for family, value in made.items()}
    assert chats["llama"] == chats["qwen"]
    # Without a BOS the first character is context only; the rest of a text is the same.
    texts = {
        family: {row.text[-60:] for row in value["heldout"] if row.kind == "text"} for family, value in made.items()
    }
    assert texts["llama"] == texts["qwen"]
    assert len(texts["llama"]) > 3
    for value in made.values():
        train = {row.row_id for row in value["train"]}
        assert not train & {row.row_id for row in value["heldout"]}


def test_the_same_recipe_gives_the_same_bytes(write_corpus, text_files) -> None:
    recipe = {"sources": [text_files(TEXTS), EXERCISES]}
    first, second = (write_corpus("llama", **recipe, seed=seed) for seed in (0, 1))
    assert first["manifest"].digest != second["manifest"].digest
    rows = first["train"]
    for name in ("one.parquet", "two.parquet"):
        write_rows(first["folder"].parent / name, rows)
    assert file_sha256(first["folder"].parent / "one.parquet") == file_sha256(first["folder"] / "train.parquet")
    assert file_sha256(first["folder"].parent / "two.parquet") == file_sha256(first["folder"] / "train.parquet")


def test_summary_and_metrics_say_what_is_there(write_corpus, text_files, tokenizers: dict[str, Path]) -> None:
    made = write_corpus("llama", sources=[EXERCISES, text_files(TEXTS)])
    summary, metrics = made["summary"], made["manifest"].metrics
    assert summary["tokenizer_digest"] == tokenizer_digest(load_tokenizer(tokenizers["llama"]))
    assert summary["template_date"] == "2024-07-26"
    for split in ("train", "heldout"):
        assert summary["splits"][split]["num_rows"] == metrics[f"{split}_rows"] == len(made[split])
        assert summary["splits"][split]["num_targets"] == sum(int(row.loss_mask.sum()) for row in made[split])
        assert summary["splits"][split]["num_tokens"] == sum(len(row.input_ids) for row in made[split])
    assert sum(metrics["rows_by_source"]["train"].values()) == metrics["train_rows"]
    # A flow asks these whether enough is held out, where the workers that choose count the rows themselves.
    assert metrics[HELDOUT_TEXTS] == heldout_texts(made["folder"] / HELDOUT_FILE).held_out > 0
    assert metrics[HELDOUT_CONVERSATIONS] == sum(row.kind == "chat" for row in made["heldout"]) > 0
    assert all(verdict.passed for verdict in STAGE.judge(metrics, CorpusConfig.model_fields["gates"].default))


def test_instructions_and_all_file_formats_are_read(write_corpus, tmp_path: Path) -> None:
    records = [{"body": text} for text in TEXTS[:6]]
    (tmp_path / "a.json").write_text(json.dumps(records[:2]))
    pq.write_table(pa.Table.from_pylist(records[2:4]), tmp_path / "b.parquet")
    (tmp_path / "c.txt").write_text(TEXTS[4] + "\n\n" + TEXTS[5])
    evolved = tmp_path / "evolved"
    evolved.mkdir()
    turns = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "because"}]
    (evolved / "instructions.jsonl").write_text(json.dumps({"id": "1", "messages": turns, "lineage": {}}) + "\n")
    sources = [
        {"kind": "files", "paths": [str(tmp_path / "*.json")], "format": "json", "text_field": "body"},
        {"kind": "files", "paths": [str(tmp_path / "b.parquet")], "format": "parquet", "text_field": "body"},
        {"kind": "files", "paths": [str(tmp_path / "c.txt")], "format": "text"},
        {"kind": "instructions"},
    ]
    made = write_corpus("llama", evolved, sources=sources, max_tokens=1024, heldout_fraction=0)
    texts = {row.text for row in made["train"]}
    assert texts == {*TEXTS[:4], TEXTS[4] + "\n\n" + TEXTS[5], "because"}
    assert made["heldout"] == []


def test_duplicates_are_dropped_and_counted(write_corpus, text_files) -> None:
    made = write_corpus("qwen", sources=[text_files([*TEXTS[:10], *TEXTS[:4]])], max_tokens=512)
    assert made["manifest"].metrics["dropped"]["duplicate"] == 4
    assert len(made["train"]) + len(made["heldout"]) == 10


def test_max_rows_cuts_training_only(write_corpus, text_files) -> None:
    source = text_files(TEXTS)
    whole = write_corpus("qwen", sources=[source], max_tokens=512)
    cut = write_corpus("qwen", sources=[source], max_tokens=512, max_rows=7)
    assert [row.row_id for row in cut["train"]] == [row.row_id for row in whole["train"]][:7]
    assert [row.row_id for row in cut["heldout"]] == [row.row_id for row in whole["heldout"]]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"max_tokens": 16, "overlong_text": "error"}, "over max_tokens=16"),
        ({"max_tokens": 16, "overlong_text": "drop"}, "no training row .*60 overlong"),
    ],
)
def test_texts_over_the_limit(write_corpus, text_files, recipe: dict, message: str) -> None:
    with pytest.raises(BadInputError, match=message) as error:
        write_corpus("qwen", sources=[text_files(TEXTS)], **recipe)
    assert "\n" not in str(error.value)


def test_the_pieces_of_a_text_name_their_document(write_corpus, text_files) -> None:
    made = write_corpus("qwen", sources=[text_files(TEXTS)], max_tokens=64)
    for split in ("train", "heldout"):
        rows = made[split]
        documents = {row.document for row in rows}
        assert 1 < len(documents) < len(rows) / 2
        assert documents <= {sha256(text.encode()).hexdigest() for text in TEXTS}
        for row in rows:
            (whole,) = (text for text in TEXTS if sha256(text.encode()).hexdigest() == row.document)
            assert row.text in whole
    assert not {row.document for row in made["train"]} & {row.document for row in made["heldout"]}


def test_sharegpt_and_chat_template_names_give_the_same_rows(write_corpus, tmp_path: Path) -> None:
    system, question, answer = ("be brief", "why", "because")
    records = {
        "sharegpt": [("from", "value", who) for who in ("system", "human", "gpt")],
        "chat": [("role", "content", who) for who in ("system", "user", "assistant")],
    }
    made = {}
    for name, fields in records.items():
        turns = [
            {speaker: who, content: text}
            for (speaker, content, who), text in zip(fields, (system, question, answer), strict=True)
        ]
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"conversations": turns}) + "\n")
        source = {"kind": "files", "format": "jsonl", "messages_field": "conversations"}
        source["paths"] = [str(tmp_path / f"{name}.jsonl")]
        made[name] = write_corpus("qwen", sources=[source], heldout_fraction=0)["train"]
    assert [row.text for row in made["sharegpt"]] == ["because"]
    assert [row.row_id for row in made["sharegpt"]] == [row.row_id for row in made["chat"]]
    good = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    bad = [{"from": "narrator", "value": "once"}, *good]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"conversations": each}) + "\n" for each in (good, bad)))
    with pytest.raises(BadInputError, match="record 1 of files has a turn of the unknown speaker 'narrator'"):
        write_corpus("qwen", sources=[source])


def test_unusable_sources_are_named(write_corpus, text_files, tmp_path: Path) -> None:
    source = text_files(["only one"])
    with pytest.raises(BadInputError, match="no text in the field 'title', only the fields body"):
        write_corpus("qwen", sources=[{**source, "text_field": "title"}])
    with pytest.raises(BadInputError, match="matches no file"):
        write_corpus("qwen", sources=[{**source, "paths": [str(tmp_path / "none-*.jsonl")]}])
    with pytest.raises(BadInputError, match="no training row"):
        write_corpus("qwen", sources=[text_files(["", "   "])])
    with pytest.raises(BadInputError, match='input "instructions"'):
        write_corpus("qwen", sources=[{"kind": "instructions"}])
    (tmp_path / "torn.jsonl").write_text('{"body": "a"}\n{"body": ')
    with pytest.raises(BadInputError, match=r"torn.jsonl cannot be read as a data set"):
        write_corpus("qwen", sources=[{**source, "paths": [str(tmp_path / "torn.jsonl")]}])


def test_a_missing_tokenizer_file_is_named(run_stage, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    recipe = {"sources": [EXERCISES], "max_tokens": 64, "template_date": "2024-07-26"}
    with pytest.raises(BadInputError, match=r"has no tokenizer\.json"):
        run_stage("corpus", recipe, {"tokenizer": empty})


def test_changed_files_are_refused(write_corpus, text_files, tmp_path: Path) -> None:
    source = FilesSource.model_validate(text_files(TEXTS)).with_identity()
    (tmp_path / "texts.jsonl").write_text(json.dumps({"body": "other"}) + "\n")
    with pytest.raises(BadInputError, match="changed since the profile was resolved"):
        write_corpus("qwen", sources=[source.model_dump(mode="json")])
    now = FilesSource.model_validate(text_files(["other"])).with_identity()
    hashes = rf"{now.sha256()[:12]}, and content_sha256 .* {str(source.content_sha256)[:12]}"
    with pytest.raises(BadInputError, match=rf"texts.jsonl has the content {hashes}"):
        source.with_identity()
    assert now.with_identity() == now


@pytest.mark.parametrize("source", [StdlibDocsSource, StdlibCodeSource])
def test_library_text_has_an_identity_that_follows_its_size(
    source: type[StdlibDocsSource] | type[StdlibCodeSource],
) -> None:
    small, same, large = (source(max_bytes=size).with_identity() for size in (20_000, 20_000, 40_000))
    assert small == same
    assert small.content_sha256 != large.content_sha256
    with pytest.raises(BadInputError, match=f"standard library has the content {str(large.content_sha256)[:12]}"):
        large.model_copy(update={"content_sha256": small.content_sha256}).with_identity()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": []}, "at least 1 item"),
        ({"template_date": "26 Jul 2024"}, "template_date"),
        ({"overlong_chat": "split"}, "overlong_chat"),
        ({"sources": [{"kind": "exercises", "count": 1, "kinds": ["poetry"]}]}, "choose from reverse"),
        ({"sources": [{"kind": "files", "paths": ["a"], "format": "json"}]}, "exactly one of text_field"),
        (
            {"sources": [{"kind": "hub", "dataset": "a/b", "revision": "main", "limit": 1, "text_field": "t"}]},
            "revision",
        ),
    ],
)
def test_recipes_that_cannot_work_are_refused(changes: dict, message: str) -> None:
    good = {"sources": [EXERCISES], "max_tokens": 64, "template_date": "2024-07-26"}
    assert CorpusRecipe.model_validate(good).model_dump(mode="json")["template_date"] == "2024-07-26"
    with pytest.raises(ValidationError, match=message):
        CorpusRecipe.model_validate({**good, **changes})


def test_rows_are_verified_when_they_are_read(tmp_path: Path) -> None:
    rows = [
        make_row([5, 6, 7], [0, 1, 1], "xy", "text", "t", "d" * 64),
        make_row([8, 9], [0, 1], "z", "chat", "t", "e" * 64),
    ]
    path = tmp_path / "rows.parquet"
    write_rows(path, rows)
    again = read_rows(path)
    assert [row.row_id for row in again] == [row_id_of([5, 6, 7]), row_id_of([8, 9])]
    assert [row.document for row in again] == ["d" * 64, "e" * 64]
    assert again[0].input_ids.dtype == np.int32
    assert again[0].input_ids.flags.writeable
    table = pq.read_table(path).to_pylist()
    table[1]["input_ids"][0] += 1
    pq.write_table(pa.Table.from_pylist(table), path)
    with pytest.raises(CorruptArtifactError, match=r"row 1 of rows.parquet"):
        read_rows(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(BadInputError, match="no column row_id"):
        read_rows(path)


def test_the_worker_loads_no_torch() -> None:
    program = "import sys, tasks.corpus.worker; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
