"""Silence of flow runs of other hosts, judged over many looks and by one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from flows.heartbeats import Heartbeats, OneLook
from tasks.artifacts.errors import MediusError

RUN = uuid4()
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


class Feed:
    """An event feed with heartbeats of one run and signs of others, so many seconds ago; None: its server is away."""

    def __init__(
        self, beats: Sequence[float] | None, others: Sequence[float] = (), behind: float = 0, ahead: float = 0
    ) -> None:
        """`behind` is how far the clock of the run's host is behind the server's, and `ahead` how far that of the
        server is ahead of the one that looks."""
        self.beats = beats
        self.others = others
        self.behind = behind
        self.ahead = ahead

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.ahead)

    def post(self, _path: str, body: dict[str, Any]) -> dict[str, Any]:
        if self.beats is None:
            raise MediusError("the Prefect server does not answer")
        now, wanted = self.now(), body["filter"]
        events = [_event(now, ago, self.behind) for ago in sorted(self.beats)]
        if "resource" not in wanted:
            events += [_event(now, ago, 0) for ago in self.others]
        since = wanted["occurred"].get("since", "0001-01-01T00:00:00+00:00")
        until = wanted["occurred"].get("until", now.isoformat())
        moments = [datetime.fromisoformat(moment) for moment in (since, until)]
        found = [event for event in events if moments[0] <= datetime.fromisoformat(event["occurred"]) <= moments[1]]
        return {"events": found[: body["limit"]]}


def _event(now: datetime, ago: float, behind: float) -> dict[str, Any]:
    received = now - timedelta(seconds=ago)
    occurred = received - timedelta(seconds=behind)
    return {"id": f"{received.timestamp():.0f}", "occurred": occurred.isoformat(), "received": received.isoformat()}


class Watched:
    """A run that is looked at again and again, on a clock of its own."""

    def __init__(self, frequency: float) -> None:
        self.feed, self.now, self.since = Feed([]), 0.0, LONG_AGO
        self.heartbeats = Heartbeats(self.feed, frequency, lambda: self.now)  # type: ignore[arg-type]

    def silence_after(self, seconds: float, beats: Sequence[float] | None) -> float | None:
        self.now += seconds
        self.feed.beats = beats
        return self.heartbeats.silence(RUN, self.since)


def test_silence_counts_only_while_the_server_hears() -> None:
    run = Watched(30)
    assert run.silence_after(0, [1000, 1030]) is None
    assert run.silence_after(149, [1000, 1030]) is None
    assert run.silence_after(16, [0, 30]) is None, "it lives"
    assert run.silence_after(140, None) is None, "the server is away, and hears nobody"
    assert run.silence_after(1000, [2000, 2030]) is None, "it is heard from now on again"
    assert run.silence_after(140, [2000, 2030]) is None
    assert run.silence_after(16, [2000, 2030]) == 150


def test_a_run_that_sends_none_is_not_judged_by_them() -> None:
    run = Watched(30)
    assert run.silence_after(0, []) is None
    assert run.silence_after(10_000, []) is None


@pytest.mark.parametrize(
    ("beats", "patience"),
    [
        pytest.param([1000, 1180, 1360], 900, id="it sends as often as Prefect's own setting says"),
        pytest.param([1000, 1010], 150, id="never held to less than this host's own"),
        pytest.param([1000], 900, id="one alone does not tell how often"),
        pytest.param([1000, 2000, 2030], 150, id="the server was away between two"),
    ],
)
def test_a_run_is_held_to_what_its_own_host_sends(beats: list[float], patience: float) -> None:
    run = Watched(30)
    assert run.silence_after(0, beats) is None
    assert run.silence_after(patience - 5, beats) is None
    assert run.silence_after(20, beats) == patience


def test_a_retry_is_not_held_to_the_distance_from_the_attempt_before() -> None:
    run = Watched(30)
    run.since = datetime.now(UTC) - timedelta(seconds=20)
    assert run.silence_after(0, [10, 30, 60]) is None
    assert run.silence_after(890, [10, 30, 60]) is None, "one of its own does not tell how often"
    assert run.silence_after(20, [10, 30, 60]) == 900


EACH_MINUTE = [float(ago) for ago in range(5, 1000, 60)]
"""What a look each minute leaves in the feed."""


@pytest.mark.parametrize(
    ("beats", "others", "silence"),
    [
        pytest.param([110, 140, 170], EACH_MINUTE, 105, id="silent while others were heard"),
        pytest.param([100, 130, 160], EACH_MINUTE, None, id="not long enough"),
        pytest.param([400, 580], EACH_MINUTE, None, id="it sends only so often"),
        pytest.param([700, 880], EACH_MINUTE, 630, id="and is silent all the same"),
        pytest.param([], EACH_MINUTE, None, id="it sends none"),
        pytest.param([500, 530], [5, 65], None, id="the server has just come back"),
        pytest.param([500, 530], [], None, id="nobody was heard"),
    ],
)
def test_one_look_tells_silence_only_where_others_were_heard_all_the_while(
    beats: list[float], others: list[float], silence: float | None
) -> None:
    assert OneLook(Feed(beats, others), 30).silent(str(RUN), LONG_AGO) == silence  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("behind", "ahead"),
    [
        pytest.param(600, 0, id="the run's host is behind"),
        pytest.param(-600, 0, id="the run's host is ahead"),
        pytest.param(0, 600, id="the host that looks is behind"),
        pytest.param(0, -600, id="the host that looks is ahead"),
    ],
)
def test_a_wrong_clock_makes_nobody_silent_and_hides_no_silence(behind: float, ahead: float) -> None:
    def silence(*beats: float, since: datetime = LONG_AGO, others: Sequence[float] = EACH_MINUTE) -> float | None:
        return OneLook(Feed(beats, others, behind, ahead), 30).silent(str(RUN), since)  # type: ignore[arg-type]

    assert silence(10, 40, 70) is None, "it lives"
    assert silence(110, 140, 170) == 105, "it has gone silent"
    started = Feed([], ahead=ahead).now() - timedelta(seconds=60)
    assert silence(110, 140, 170, since=started) is None, "it has begun again"
    assert silence(500, 530, others=[5, 65]) is None, "the server has just come back"


def test_one_look_at_a_server_that_is_away_is_an_error() -> None:
    with pytest.raises(MediusError, match="does not answer"):
        OneLook(Feed(None), 30).silent(str(RUN), LONG_AGO)  # type: ignore[arg-type]
