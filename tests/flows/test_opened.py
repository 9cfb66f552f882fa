"""What surrounds a run: its record, and that nothing of it takes the place of how the run really ended."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.futures import PrefectConcurrentFuture
from prefect.states import Completed, Failed, State

from flows import opened
from flows.opened import gather, open_run
from flows.profiles import Profile, load_profile
from tasks.artifacts.errors import BadInputError, GateFailedError, InterruptedRunError, MediusError, TransientStoreError
from tasks.artifacts.process_identity import ProcessIdentity, own_process, process_started
from tasks.artifacts.runs import RunKind, RunRecord, all_runs, write_run
from tasks.artifacts.store import Store, open_store
from tests.flows.conftest import Medius

SMOKE = RunKind(smoke=True, until="corpus-qwen")


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opened, "STOP", Event())
    return load_profile("micro", store=str(tmp_path / "store"))


def test_the_record_says_what_kind_of_run_it_is_and_which_process(profile: Profile) -> None:
    store = open_store(profile.store)
    with open_run(profile, [], kind=SMOKE):
        [record] = all_runs(store)
        assert (record.state, record.kind) == ("running", SMOKE)
        assert record.process is not None
        assert record.process.process == os.getpid()
        assert record.may_run()
    [record] = all_runs(store)
    assert record.state == "finished"
    assert record.ended is not None


@pytest.fixture
def other() -> Iterator[ProcessIdentity]:
    """Another process of this host."""
    with subprocess.Popen(["sleep", "600"]) as process:
        started = process_started(process.pid)
        assert started is not None
        yield own_process().model_copy(update={"process": process.pid, "process_started": started})
        process.kill()


def test_a_run_that_is_still_at_work_is_not_begun_a_second_time(
    profile: Profile, other: ProcessIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect.runtime.flow_run.get_id", lambda: "retried")
    store = open_store(profile.store)
    record = RunRecord(
        run="retried", profile="micro", config={}, steps=(), process=other, started="2026-01-01T00:00:00Z"
    )

    def begin() -> None:
        with open_run(profile, []):
            pass

    write_run(store, record)
    with pytest.raises(
        BadInputError, match=rf"run retried is still at work in process {other.process} of .*; wait until"
    ):
        begin()
    assert all_runs(store) == [record], "it is the other's"
    elsewhere, gone = {"host": "another"}, {"process_started": "1"}
    for process in (elsewhere, gone):
        write_run(store, record.model_copy(update={"process": other.model_copy(update=process)}))
        begin()
    write_run(store, record.model_copy(update={"state": "interrupted"}))
    begin()
    assert [found.state for found in all_runs(store)] == ["finished"]


@pytest.mark.parametrize("error", [GateFailedError("a gate"), InterruptedRunError("stopped")], ids=str)
def test_a_store_that_is_away_at_the_end_hides_no_failure(
    profile: Profile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: MediusError
) -> None:
    _away_at_the_end(monkeypatch)
    with pytest.raises(type(error)) as raised, open_run(profile, []):
        raise error
    assert raised.value is error
    assert "the end of the run could not be recorded: away" in caplog.text


def test_a_store_that_is_away_at_the_end_fails_no_finished_run(
    profile: Profile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _away_at_the_end(monkeypatch)
    with open_run(profile, []):
        pass
    assert "could not be recorded" in caplog.text


def _away_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    real = opened.write_run

    def write(store: Store, record: RunRecord) -> None:
        if record.ended is not None:
            raise TransientStoreError("away")
        real(store, record)

    monkeypatch.setattr(opened, "write_run", write)


def ended(state: State[Any] | Exception) -> PrefectConcurrentFuture[Any]:
    """What Prefect gives for a task run that has ended so; an exception is of its engine, not of the task."""
    wrapped: Future[Any] = Future()
    if isinstance(state, Exception):
        wrapped.set_exception(state)
    else:
        wrapped.set_result(state)
    return PrefectConcurrentFuture(uuid4(), wrapped)


def test_of_several_failures_the_cause_is_told() -> None:
    lost, stopped, cause = httpx.ConnectError("refused"), InterruptedRunError("stopped"), BadInputError("no teacher")
    failures = {error: ended(Failed(data=error)) for error in (stopped, cause)}
    with pytest.raises(BadInputError) as told:
        gather([ended(lost), failures[stopped], failures[cause]])
    assert told.value is cause
    with pytest.raises(httpx.ConnectError):
        gather([failures[stopped], ended(lost), ended(Completed(data=1))])
    assert gather([ended(Completed(data=1)), ended(Completed(data=2))]) == [1, 2]


def test_status_says_of_a_killed_run_that_it_ended_without_a_word(medius: Medius, tmp_path: Path) -> None:
    gone = own_process().model_copy(update={"process_started": "1"})
    record = RunRecord(
        run="killed", profile="micro", config={}, steps=(), kind=SMOKE, process=gone, started="2026-01-01T00:00:00Z"
    )
    write_run(open_store(str(tmp_path / "store")), record)
    said = medius("status", "micro", "--store", str(tmp_path / "store"))
    assert "run killed (smoke, until corpus-qwen): ended without a word, started 2026-01-01T00:00:00Z" in said.out
