"""When a stage tells that it is slow."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tasks.runtime import stage_events
from tasks.runtime.stage_events import StageEvents
from tasks.runtime.stage_feed import ENDED, PROGRESS, SLOW
from tests.runtime.errand import errand


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what was emitted; no server has to hear it."""
    names: list[str] = []
    monkeypatch.setattr(stage_events, "emit_event", lambda event, _resource, payload: names.append(event))
    return names


def seconds_told(told: list[str], speeds: Iterable[tuple[float, float | None]]) -> list[float]:
    """When a stage with the floor 100 says that it is slow, given (second, tokens/s) of its progress."""
    now = [0.0]
    events = StageEvents(errand("a", min_tokens_per_second=100), lambda: now[0])
    found = []
    for second, speed in speeds:
        now[0], before = second, told.count(SLOW)
        events.progress(1, 2, "steps", speed)
        if told.count(SLOW) > before:
            found.append(second)
    return found


def test_slow_is_two_minutes_without_a_break_and_then_once_an_hour(told: list[str]) -> None:
    assert seconds_told(told, [(second, 50.0) for second in range(30, 7500, 30)]) == [150, 3750, 7350]


def test_four_slow_moments_of_an_hour_are_none(told: list[str]) -> None:
    often = [(second, 50.0 if second % 90 else 500.0) for second in range(30, 3600, 30)]
    assert sum(speed == 50 for _, speed in often) > 60
    assert seconds_told(told, often) == []


def test_a_progress_without_a_speed_breaks_nothing(told: list[str]) -> None:
    assert seconds_told(told, [(30, 50.0), (60, None), (90, None), (150, 50.0)]) == [150]


def test_an_end_is_told_once_and_only_of_what_has_begun(told: list[str]) -> None:
    events = StageEvents(errand("a"))
    events.end()
    assert told == []
    events.launch()
    events.end()
    events.end()
    assert told == [PROGRESS, ENDED]
