"""What a worker tells of itself, and when it leaves."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tasks.worker.job import STOP_FILE, Job, PreemptedError
from tasks.worker.spec import WorkerSpec


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(
        WorkerSpec(
            stage="corpus",
            label="corpus",
            key="0" * 64,
            attempt="00000001",
            store=f"file://{tmp_path / 'store'}",
            directory="artifacts/corpus/corpus-1",
            scratch=str(tmp_path / "scratch"),
            input_cache=str(tmp_path / "inputs"),
            recipe={},
            runtime={},
            inputs={},
        )
    )


def test_quick_steps_are_told_once_a_second_and_at_their_end(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    told = []
    for done, moment in ((0, 100.0), (1, 100.5), (2, 101.0), (3, 101.9), (5, 101.95)):
        now = moment
        told.append(job.progress_each_second(done, 5, "rows"))
    assert told == [True, False, True, False, True]
    # One that is always told counts, too.
    now = 110.0
    job.progress(0, None, "rows")
    now = 110.5
    assert not job.progress_each_second(1, None, "rows")
    events = [json.loads(line) for line in (job.scratch / "events.jsonl").read_text().splitlines()]
    assert [event.get("done", 0) for event in events] == [0, 2, 5, 0]


def test_a_worker_leaves_once_it_is_asked(job: Job) -> None:
    job.leave_if_asked()
    (job.scratch / STOP_FILE).touch()
    with pytest.raises(PreemptedError):
        job.leave_if_asked()
