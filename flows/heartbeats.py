"""Which flow runs of other hosts have gone silent, by the heartbeats that Prefect lets a run send.

A process knows nothing of another host's processes, and a host that loses power tells nobody. So silence is counted,
but only while the server answers: one that was away has heard nobody, and then says nothing of anybody.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from prefect.settings.context import get_current_settings

from flows.prefect_api import PrefectApi
from flows.prefect_settings import configured_server
from tasks.artifacts.errors import MediusError

MISSED = 5
"""Heartbeats after which a run is given up: with one in 30 s after two and a half minutes."""
_LOOKS = 10
"""Looks within that time."""


@dataclass
class Heartbeats:
    """Looks for the heartbeats of flow runs, from its first look at each."""

    api: PrefectApi
    silent_seconds: float
    """After which one is given up."""
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
        return None if frequency is None else cls(configured_server(), MISSED * frequency)

    def silent(self, run: UUID) -> bool:
        """Whether a run that sent heartbeats has sent none for too long. To be asked again and again."""
        now = self.clock()
        if now < self._next.get(run, 0.0):
            return False
        self._next[run] = now + self.silent_seconds / _LOOKS
        try:
            newest = self._newest(run)
        except MediusError:
            self._since.pop(run, None)
            return False
        if newest is None:
            return False
        if newest != self._heard.get(run) or run not in self._since:
            self._heard[run], self._since[run] = newest, now
        return now - self._since[run] > self.silent_seconds

    def _newest(self, run: UUID) -> str | None:
        wanted = {
            "event": {"name": ["prefect.flow-run.heartbeat"]},
            "resource": {"id": [f"prefect.flow-run.{run}"]},
            "order": "DESC",
        }
        found = self.api.post("/events/filter", {"filter": wanted, "limit": 1})["events"]
        return str(found[0]["id"]) if found else None
