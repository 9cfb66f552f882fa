"""Which process of a launch evaluates which models."""

from __future__ import annotations

from collections.abc import Mapping


def deal(sizes: Mapping[str, float], num_processes: int) -> list[list[str]]:
    """The models of each process: the largest that is left to the one with the least so far, by bytes of weights.

    A process has a whole model to itself, so that what is measured of it does not hang on how many there are.
    """
    turns: list[list[str]] = [[] for _ in range(num_processes)]
    loads = [0.0] * num_processes
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = loads.index(min(loads))
        turns[least].append(name)
        loads[least] += sizes[name]
    return turns
