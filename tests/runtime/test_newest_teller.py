"""What a server is told of a stage while it answers, while it does not, and at the end."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from functools import partial
from uuid import uuid4

import pytest

from tasks.runtime import dashboard, stage_events
from tasks.runtime.dashboard import Dashboard
from tasks.runtime.newest_teller import NewestTeller
from tasks.worker.spec import Event
from tests.runtime.errand import errand

SOON = 30


def test_of_what_waits_only_the_newest_is_told() -> None:
    told: list[str] = []
    busy, answers = threading.Event(), threading.Event()

    def first() -> None:
        busy.set()
        assert answers.wait(SOON)
        told.append("first")

    teller = NewestTeller()
    teller.tell("progress", first)
    assert busy.wait(SOON)
    for number in range(3):
        teller.tell("progress", partial(told.append, f"progress {number}"))
        teller.tell("curves", partial(told.append, f"curves {number}"))
    answers.set()
    teller.close(SOON)
    assert told == ["first", "progress 2", "curves 2"]


def test_a_server_that_does_not_answer_keeps_nobody_beyond_the_deadline() -> None:
    answers = threading.Event()
    teller = NewestTeller()
    teller.tell("progress", lambda: answers.wait(SOON))
    started = time.monotonic()
    teller.close(0.2)
    assert time.monotonic() - started < SOON / 2
    answers.set()


def test_what_is_told_belongs_to_the_run_of_its_maker() -> None:
    run: contextvars.ContextVar[str] = contextvars.ContextVar("run")
    run.set("this one")
    teller, seen = NewestTeller(), []
    teller.tell("progress", lambda: seen.append(run.get()))
    teller.close(SOON)
    assert seen == ["this one"]


def test_a_stage_is_watched_while_the_dashboard_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that calls a Dashboard is the one that sees a stop and lets the worker save its checkpoint."""
    answers, told = threading.Event(), []

    def create(progress: float, **_named: object) -> object:
        assert answers.wait(SOON)
        told.append(progress)
        return uuid4()

    # With no server named Prefect would start one of its own for the first event, here, and wait 20 s for it.
    monkeypatch.setattr(stage_events, "emit_event", lambda *_event, **_named: None)
    monkeypatch.setattr(dashboard, "_PROGRESS_SECONDS", 0)
    monkeypatch.setattr(dashboard, "create_progress_artifact", create)
    monkeypatch.setattr(dashboard, "update_progress_artifact", lambda _id, progress, description: told.append(progress))
    shown = Dashboard(errand("a"), logging.getLogger("test"))
    started = time.monotonic()
    for done in range(1, 5):
        shown(Event(time=time.time(), kind="progress", done=done, total=10, unit="steps"))
    assert time.monotonic() - started < SOON / 2, "nobody answered yet"
    answers.set()
    shown.finish(complete=True)
    assert told[0] == 10
    assert told[-1] == 100
    assert len(told) <= 3, "what nobody could be told at its time is not told late"
