"""Credentials are taken out of whatever is written, whether the environment or the text itself gives them away."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.artifacts.artifact import decode_record, encode_record
from tasks.artifacts.errors import GateFailedError, StoreError
from tasks.artifacts.manifest import ObjectRecord, ShardReceipt
from tasks.artifacts.redact import REDACTED, find_credential, redact, redact_file, redact_record
from tasks.artifacts.runs import RunRecord, write_run
from tasks.artifacts.store import Store
from tasks.evolve.endpoint import Endpoint
from tasks.runtime.log_redaction import redact_log_records
from tasks.worker.spec import Event

SECRET = 'vErY/se+cret "of" mine'


@pytest.mark.parametrize(
    "name",
    [
        "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "OPENAI_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN",
        "PREFECT_API_KEY", "EVOLVE_API_KEY", "JUDGE_KEY", "WANDB_API_KEY", "DB_PASSWORD",
    ],
)  # fmt: skip
def test_what_the_environment_holds_is_taken_out_however_it_is_spelt(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert redact(f"a {SECRET} b") == f"a {SECRET} b", "it is no secret until the environment says so"
    monkeypatch.setenv(name, SECRET)
    assert redact(f"a {SECRET} b") == f"a {REDACTED} b"
    assert json.loads(redact(json.dumps({"a": SECRET}))) == {"a": REDACTED}
    assert redact("key=vErY%2Fse%2Bcret%20%22of%22%20mine&x=1") == f"key={REDACTED}&x=1"


@pytest.mark.parametrize(
    "name", ["AWS_ACCESS_KEY_ID", "TOKENIZERS_PARALLELISM", "AWS_WEB_IDENTITY_TOKEN_FILE", "KEYBOARD"]
)
def test_a_name_of_no_secret_leaves_texts_as_they_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "medius-store")
    assert redact("s3://medius-store/x") == "s3://medius-store/x"


def test_of_a_name_and_a_password_both_spellings_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:long-password")
    assert redact("admin:long-password, long-password, admin") == f"{REDACTED}, {REDACTED}, admin"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("postgres://user:pass@host/db", f"postgres://{REDACTED}@host/db"),
        ("https://h/x?X-Amz-Signature=0a1b&y=2", f"https://h/x?X-Amz-Signature={REDACTED}&y=2"),
        ("https://h/x?Expires=1&Signature=a%2Fb", f"https://h/x?Expires=1&Signature={REDACTED}"),
        ("Authorization: Bearer abcdefghijklmnop.q", f"Authorization: Bearer {REDACTED}"),
        ("key AKIAIOSFODNN7EXAMPLE used", f"key {REDACTED} used"),
        ("hf_abcdefghijklmnopqrstuvwx", REDACTED),
        ("sk-proj-abcdefghijklmnopqrstuv", REDACTED),
        ("pnu_abcdefghijklmnopqrstuvwx", REDACTED),
    ],
)
def test_what_looks_like_a_credential_is_taken_out(text: str, clean: str) -> None:
    assert redact(text) == clean


@pytest.mark.parametrize(
    "text",
    ["s3://bucket/a@b", "http://127.0.0.1:8333/x", "basic characteristically-long words", "loss: 2 @ step 3", "a" * 64,
     "s3://medius/artifacts/sft/sft-0123456789abcdef/data/main-01234567/model.safetensors"],
)  # fmt: skip
def test_other_text_stays(text: str) -> None:
    assert redact(text) == text


def test_a_file_is_cleaned_and_one_without_secrets_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"fine \xff\r\n" + SECRET.encode() + b"\nend")
    before = log.stat().st_ino
    redact_file(log)
    assert log.stat().st_ino == before
    monkeypatch.setenv("HF_TOKEN", SECRET)
    redact_file(log)
    assert log.read_bytes() == b"fine \xff\r\n" + REDACTED.encode() + b"\nend"
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_messages_and_records_hold_none(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert str(StoreError(f"refused {SECRET}")) == f"refused {REDACTED}"
    assert str(GateFailedError(f"refused {SECRET}", [1])) == f"refused {REDACTED}"
    record = RunRecord(run="r", profile="p", config={"a": [SECRET]}, steps=(), started="2001-01-01", message=SECRET)
    write_run(store, record)
    assert b"cret" not in store.get("runs/r.json")


def test_a_secret_that_is_a_word_or_a_number_makes_no_record_unreadable(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a whole line was cleaned, `"done":20240917.0` and `"kind":"progress"` went, and with them the stage."""
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:20240917")
    monkeypatch.setenv("SORT_KEY", "progress")
    event = Event(
        time=20240917, kind="progress", done=20240917, message="progress: 20240917", values={"a": ["progress"]}
    )
    clean = Event.model_validate(redact_record(event))
    assert (clean.kind, clean.done, clean.time) == (event.kind, event.done, event.time)
    assert clean.message == f"{REDACTED}: {REDACTED}"
    assert clean.values == {"a": [REDACTED]}
    entry = ObjectRecord(name="progress", path="data/main-progress/progress", size=20240917, sha256="0" * 64)
    receipt = ShardReceipt(shard="progress", write_id="1", objects=(entry,), covers=("progress",))
    read = decode_record(ShardReceipt, encode_record(receipt), "x")
    assert read.objects == (entry,)
    assert (read.shard, read.covers) == ("progress", ("progress",))


def test_a_key_out_of_a_file_is_a_secret_without_its_line_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOLVE_API_KEY", f"{SECRET}\n")
    assert redact(f"Incorrect API key provided: {SECRET}.") == f"Incorrect API key provided: {REDACTED}."


@pytest.mark.parametrize("name", ["SERVER_AUTH", "TEACHERKEY", "VLLM_BEARER"])
def test_a_key_may_not_stand_under_a_name_that_is_not_cleaned(name: str) -> None:
    with pytest.raises(ValidationError, match=f"api_key_env is {name}, and logs keep the value"):
        Endpoint(base_url="http://127.0.0.1:1/v1", api_key_env=name)


def test_a_log_call_whose_arguments_do_not_fit_is_told_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    make = logging.getLogRecordFactory()
    redact_log_records()
    try:
        logging.getLogger("x").warning("abc", SECRET)
    finally:
        logging.setLogRecordFactory(make)
    assert caplog.messages[-1] == "abc (with arguments that do not fit)"
    assert SECRET not in caplog.text


def test_the_place_of_a_credential_in_a_document_is_found() -> None:
    assert find_credential({"a": [{"b": "x"}, {"c": "http://u:p@h/"}]}) == "a.1.c"
    assert find_credential({"a": [1, None, True, "http://h:1/"]}) is None


def test_log_records_hold_none(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    make = logging.getLogRecordFactory()
    try:
        redact_log_records()
        try:
            int(SECRET)
        except ValueError:
            logging.getLogger("x").exception("with %s and %d", SECRET, 3)
        logging.getLogger("x").warning("plain %d", 4)
    finally:
        logging.setLogRecordFactory(make)
    assert "cret" not in caplog.text
    assert f"with {REDACTED} and 3" in caplog.text
    assert f"with base 10: '{REDACTED}'" in caplog.text
    assert caplog.records[-1].args == (4,)
