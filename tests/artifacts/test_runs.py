"""What a store remembers of runs, and which of them keep their artifacts."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from tasks.artifacts.errors import CorruptArtifactError
from tasks.artifacts.process_identity import own_process
from tasks.artifacts.runs import WHOLE, RunKind, RunRecord, all_runs, retained, runs_written_since, write_run
from tasks.artifacts.store import Store

SMOKE = RunKind(smoke=True)
UNTIL = RunKind(until="corpus-qwen")
SET = RunKind(overrides=("branches.qwen.distill.recipe.steps=2",))
LONG_AFTER = datetime(2030, 1, 1, tzinfo=UTC)


def record(run: str, kind: RunKind = WHOLE, state: str = "finished", year: int = 2001, **fields: object) -> RunRecord:
    return RunRecord.model_validate(
        {
            "run": run,
            "profile": "ours",
            "config": {},
            "steps": (),
            "kind": kind,
            "state": state,
            "started": f"{year}-01-01T00:00:00Z",
            **fields,
        }
    )


def kept(*runs: RunRecord) -> set[str]:
    return {run.run for run in retained(runs, LONG_AFTER)}


@pytest.mark.parametrize("kind", [SMOKE, UNTIL, SET], ids=str)
def test_a_run_of_another_kind_takes_no_place_of_the_real_one(kind: RunKind) -> None:
    assert kept(record("real"), record("other", kind, year=2002)) == {"real", "other"}
    assert kept(record("real"), record("next", year=2002)) == {"next"}


def test_a_run_that_failed_takes_no_place_of_one_that_finished() -> None:
    first, failed, again = record("first"), record("failed", state="failed"), record("again", state="failed")
    assert kept(first, failed, again) == {"first", "again"}


def test_profiles_take_no_place_of_each_other() -> None:
    assert kept(record("ours"), record("theirs", profile="theirs")) == {"ours", "theirs"}


def test_what_may_be_running_is_kept_and_what_is_known_dead_is_not() -> None:
    here = own_process()
    gone = here.model_copy(update={"process_started": "1"})
    elsewhere = gone.model_copy(update={"host": "another"})
    runs = [
        record("living", state="running", process=here),
        record("gone", state="running", process=gone),
        record("elsewhere", state="running", process=elsewhere),
        record("unknown", state="running"),
        record("last"),
    ]
    assert kept(*runs) == {"living", "elsewhere", "unknown", "last"}
    assert [run.is_dead() for run in runs] == [False, True, False, False, False]
    assert "ended without a word" in runs[1].describe()
    assert "running" in runs[0].describe()


def test_what_ended_lately_is_kept() -> None:
    runs = [record("old"), record("long", ended="2031-01-01T00:00:00Z"), record("last", year=2003)]
    assert kept(*runs) == {"long", "last"}


def test_a_line_says_how_a_run_differs() -> None:
    assert record("r", RunKind(smoke=True, until="fuse", overrides=("a=1",))).describe() == (
        "run r (smoke, until fuse, --set a=1): finished, started 2001-01-01T00:00:00Z"
    )


def test_records_of_before_are_read(store: Store) -> None:
    old = {
        "record": 1, "run": "r", "profile": "p", "config": {}, "steps": [], "started": "2001-01-01T00:00:00Z",
        "ended": None, "state": "running", "message": "",
    }  # fmt: skip
    store.put("runs/r.json", json.dumps(old).encode())
    [found] = all_runs(store)
    assert (found.kind, found.process) == (WHOLE, None)
    assert found.may_run(), "nothing says that it ended"


@pytest.mark.parametrize("data", [b"{", b'{"run": "r", "new": 1}'])
def test_a_record_that_cannot_be_read_is_one_sentence(store: Store, data: bytes) -> None:
    store.put("runs/r.json", data)
    with pytest.raises(
        CorruptArtifactError, match=r"runs/r\.json cannot be read, as it (is torn|was written by another)"
    ):
        all_runs(store)


def test_a_time_that_is_none_is_one_sentence(store: Store) -> None:
    store.put("runs/r.json", record("r").model_dump_json().replace("2001-", "soon-").encode())
    with pytest.raises(CorruptArtifactError, match=r"runs/r\.json cannot be read.*started.*soon"):
        all_runs(store)


def test_runs_that_were_written_since_a_moment(store: Store) -> None:
    write_run(store, record("r"))
    assert [run.run for run in runs_written_since(store, store.now())] == ["r"]
    assert runs_written_since(store, store.now() + 60) == []
