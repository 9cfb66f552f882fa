"""When each stage of a run starts and ends, given how long each takes: the critical path, and what runs at one time."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Schedule(Generic[Name]):
    """Seconds from the start of the run."""

    start: Mapping[Name, float]
    end: Mapping[Name, float]
    critical: tuple[Name, ...]
    """The stages that decide the end, in order: each starts when the one before ends."""

    @property
    def length(self) -> float:
        """Until the last stage has ended."""
        return max(self.end.values(), default=0.0)

    def most(self, amounts: Mapping[Name, float]) -> float:
        """The largest sum of `amounts` over stages that run at one time."""
        moments = [start for name, start in self.start.items() if self.end[name] > start]
        return max(
            (
                sum(amounts[name] for name in self.start if self.start[name] <= moment < self.end[name])
                for moment in moments
            ),
            default=0.0,
        )


def schedule(seconds: Mapping[Name, float], needs: Mapping[Name, Sequence[Name]], slots: int) -> Schedule[Name]:
    """Starts each stage as soon as its inputs and one of `slots` are there.

    Of several that could start, the one with the longest way to the end goes first.

    Args:
        seconds: by stage; each after its inputs.
        needs: the inputs of each.
        slots: how many stages may run at one time.
    """
    way: dict[Name, float] = {}
    users: dict[Name, list[Name]] = {name: [] for name in seconds}
    for name in seconds:
        for source in needs[name]:
            users[source].append(name)
    for name in reversed(list(seconds)):
        way[name] = seconds[name] + max((way[user] for user in users[name]), default=0.0)

    missing = {name: len(set(needs[name])) for name in seconds}
    ready = [name for name in seconds if not missing[name]]
    start: dict[Name, float] = {}
    end: dict[Name, float] = {}
    why: dict[Name, Name | None] = {}
    running: list[tuple[float, int, Name]] = []
    now, last = 0.0, None
    while ready or running:
        ready.sort(key=lambda name: -way[name])
        while ready and len(running) < slots:
            name = ready.pop(0)
            start[name], end[name] = now, now + seconds[name]
            why[name] = last
            heapq.heappush(running, (end[name], len(start), name))
        now, _, last = heapq.heappop(running)
        for user in dict.fromkeys(users[last]):
            missing[user] -= 1
            if not missing[user]:
                ready.append(user)
    path: list[Name] = []
    at: Name | None = max(end, key=lambda name: end[name]) if end else None
    while at is not None:
        path.append(at)
        at = why[at]
    return Schedule(start, end, tuple(reversed(path)))
