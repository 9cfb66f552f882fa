"""Which flow runs of other hosts have gone silent, by the heartbeats that Prefect lets a run send.

A process knows nothing of another host's processes, and a host that loses power tells nobody. So silence is counted,
but only while the server answers: one that was away has heard nobody, and then says nothing of anybody. How often a run
sends is a setting of its own host, and read off what it has sent. When, its host's clock says, which may be wrong:
silence is counted from when the server received it, by the server's clock or, over many looks, by this process's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

from prefect.settings.context import get_current_settings

from flows.prefect_api import PrefectApi
from flows.prefect_settings import configured_server
from tasks.artifacts.errors import MediusError

MISSED = 5
"""Heartbeats after which a run is given up: with one in 30 s after two and a half minutes."""
LOST = "lost: "
"""Begins what is said of a run that ended without a word; the alerts of infra/automations.yaml are told apart by it."""
GONE_SILENT = LOST + "no heartbeat for {seconds:.0f} s, its host is gone or cut off"
DEFAULT_FREQUENCY = 180.0
"""Seconds between two where a host's settings say nothing; so long are those of a run that has sent one alone."""
_LOOKS = 10
"""Looks within that time."""
_NAME = "prefect.flow-run.heartbeat"
_NEWEST = 3
"""Of which the two closest tell how often a run sends: between others the server may have been away."""
_PAGE = 50
"""As many events as the server gives at once."""
_WRONG_CLOCKS = timedelta(days=1)
"""So far ahead may be the clock of a host whose events are found."""


@dataclass(frozen=True)
class Beats:
    """The newest heartbeats of a flow run: the last one's id, when the server got it, the seconds between two."""

    last: str
    received: datetime
    frequency: float

    @classmethod
    def of(cls, api: PrefectApi, run: UUID | str, since: datetime) -> Beats | None:
        """None of a run that has sent none. Raises MediusError where the server is away.

        Args:
            since: when the run came into its state, by the server. Between a heartbeat from before, of another attempt,
                and one from after lies any time.
        """
        wanted = {
            "event": {"name": [_NAME]},
            "resource": {"id": [f"prefect.flow-run.{run}"]},
            # Otherwise the server leaves out what is still to come by its own clock.
            "occurred": {"until": (datetime.now(UTC) + _WRONG_CLOCKS).isoformat()},
            "order": "DESC",
        }
        found: list[dict[str, Any]] = api.post("/events/filter", {"filter": wanted, "limit": _NEWEST})["events"]
        if not found:
            return None
        ours = [event for event in found if datetime.fromisoformat(event["received"]) >= since]
        moments = [datetime.fromisoformat(event["occurred"]) for event in ours]
        distances = [(later - earlier).total_seconds() for later, earlier in pairwise(moments)]
        received = max(datetime.fromisoformat(event["received"]) for event in found)
        return cls(str(found[0]["id"]), received, min(distances, default=DEFAULT_FREQUENCY))


@dataclass
class Heartbeats:
    """Looks for the heartbeats of flow runs, from its first look at each."""

    api: PrefectApi
    frequency: float
    """Seconds between two of a run of this host's settings; those of another are never held to less."""
    clock: Callable[[], float] = time.monotonic
    _heard: dict[UUID, str] = field(default_factory=dict)
    """The newest event of each run that has sent one."""
    _since: dict[UUID, float] = field(default_factory=dict)
    """When that came, or when the server answered again."""
    _next: dict[UUID, float] = field(default_factory=dict)

    @classmethod
    def of_server(cls) -> Heartbeats | None:
        """Those of the server in Prefect's settings, sent as often as they say; None where they say never."""
        frequency = get_current_settings().flows.heartbeat_frequency
        return None if frequency is None else cls(configured_server(), frequency)

    def silence(self, run: UUID, since: datetime) -> float | None:
        """The seconds after which a run that sent heartbeats is given up, where it has sent none for longer; else None.
        To be asked again and again.

        Args:
            since: when it came into its state, by the server.
        """
        now = self.clock()
        if now < self._next.get(run, 0.0):
            return None
        self._next[run] = now + MISSED * self.frequency / _LOOKS
        try:
            beats = Beats.of(self.api, run, since)
        except MediusError:
            self._since.pop(run, None)
            return None
        if beats is None:
            return None
        if beats.last != self._heard.get(run) or run not in self._since:
            self._heard[run], self._since[run] = beats.last, now
        patience = MISSED * max(self.frequency, beats.frequency)
        return patience if now - self._since[run] > patience else None


@dataclass
class OneLook:
    """Judges flow runs by one look at the feed, also from a host that has seen nothing before."""

    api: PrefectApi
    frequency: float
    missed: float = 3.5
    """Fewer than `MISSED`: with a look a minute a run whose last heartbeat is just missed is marked within three."""
    _WINDOW_SECONDS = 65.0
    """A look each minute is itself in the feed: where one of these has no event of flow runs the server was away."""
    _LATE = timedelta(seconds=5)
    """So long an event may take to the server."""

    def silent(self, run: str, since: datetime) -> float | None:
        """The seconds after which it counts as silent, where it has sent nothing for longer and others were heard all
        the while.

        Args:
            since: when it came into its state, by the server; what it did before does not count.

        Raises:
            MediusError: the server does not answer.
        """
        beats = Beats.of(self.api, run, since)
        if beats is None:
            return None
        patience = self.missed * max(self.frequency, beats.frequency)
        now = self.api.now()
        if (now - max(beats.received, since)).total_seconds() <= patience:
            return None
        # One window more than the silence itself: a server that has just come back has not heard who is about to speak.
        windows = int(patience // self._WINDOW_SECONDS) + 2
        heard = all(self._heard_anybody(now, window) for window in range(windows))
        return patience if heard else None

    def _heard_anybody(self, now: datetime, window: int) -> bool:
        until = now - timedelta(seconds=window * self._WINDOW_SECONDS)
        since = until - timedelta(seconds=self._WINDOW_SECONDS)
        occurred = {"since": since.isoformat(), "until": until.isoformat()}
        wanted = {"event": {"prefix": ["prefect.flow-run."]}, "occurred": occurred}
        found = self.api.post("/events/filter", {"filter": wanted, "limit": _PAGE})["events"]
        # A host whose clock is behind tells now of what the server has not heard then.
        return any(since <= datetime.fromisoformat(event["received"]) <= until + self._LATE for event in found)
