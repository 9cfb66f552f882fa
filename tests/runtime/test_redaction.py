"""A worker that prints, raises and records secrets leaves none of them in the store, in an error or in an event."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.artifacts.errors import WorkerFailedError
from tasks.artifacts.redact import REDACTED
from tasks.artifacts.store import Store
from tasks.runtime.execute import RunContext, execute
from tasks.worker.spec import Event
from tests.runtime.errand import errand

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "aws-secret-1d9f0c",
    "HF_TOKEN": "hf-token-1d9f0c",
    "OPENAI_API_KEY": "openai-key-1d9f0c",
    "PREFECT_API_KEY": "prefect-key-1d9f0c",
    "TEACHER_KEY": "teacher-key-1d9f0c",
}
ALL = " ".join([*SECRETS.values(), "http://user:pass-1d9f0c@host/", "?X-Amz-Signature=1d9f0c"])


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def _bytes_of(store: Store) -> bytes:
    return b"\n".join(store.get(entry.path) for entry in store.list("artifacts"))


def test_a_failing_worker_tells_none(context: RunContext, store: Store) -> None:
    step = errand("x", behaviour="recorded", end=f"it ended: {ALL}", printed=f"it said: {ALL}")
    with pytest.raises(WorkerFailedError) as raised:
        execute(step, context)
    assert REDACTED in str(raised.value)
    assert "1d9f0c" not in str(raised.value)
    written = _bytes_of(store)
    assert b"it said: " + REDACTED.encode() in written, "the log is kept"
    assert b"1d9f0c" not in written


def test_a_manifest_and_events_hold_none(
    context: RunContext, store: Store, events: list[Event], tmp_path: Path
) -> None:
    outcome = execute(errand("x", end=ALL, announce=str(tmp_path)), context)
    assert outcome.ref.uri
    assert b"1d9f0c" not in _bytes_of(store)
    assert all("1d9f0c" not in event.model_dump_json() for event in events)
