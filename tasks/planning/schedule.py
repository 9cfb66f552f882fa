"""When each stage of a run starts and ends, given how long each takes: the critical path, and what runs at one time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)
_ROUNDING = 1e-9
"""72 accelerators of 1/72 node each may add up to more than a node."""


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

    def most(self, amounts: Mapping[Name, float], kept: Mapping[Name, float] | None = None) -> float:
        """The largest sum at one time of `amounts` over the stages that run, and of `kept` over those that have begun.

        A stage that is not named has nothing.
        """
        moments = {*self.start.values(), self.length}
        return max(
            sum(amounts.get(name, 0.0) for name in self.start if self.start[name] <= moment < self.end[name])
            + sum(amount for name, amount in (kept or {}).items() if self.start[name] <= moment)
            for moment in moments
        )


def schedule(
    seconds: Mapping[Name, float],
    needs: Mapping[Name, Sequence[Name]],
    slots: int,
    nodes: Mapping[Name, float] | None = None,
    num_nodes: float = math.inf,
) -> Schedule[Name]:
    """Starts each stage as soon as its inputs, one of `slots` and its part of the nodes' accelerators are there.

    Of several that could start, the one with the longest way to the end goes first; one that has to wait for
    accelerators lets others by.

    Args:
        seconds: by stage; each after its inputs.
        needs: the inputs of each.
        slots: how many stages may run at one time.
        nodes: how many nodes' accelerators each takes, 0.125 for one of eight; a stage that is not named takes none.
        num_nodes: that there are; a stage that needs more takes all.
    """
    takes = {name: min((nodes or {}).get(name, 0.0), num_nodes) for name in seconds}
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
        for name in sorted(ready, key=lambda name: -way[name]):
            taken = sum(takes[other] for _, _, other in running)
            if len(running) >= slots or taken + takes[name] > num_nodes + _ROUNDING:
                continue
            ready.remove(name)
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
