"""Where the boxes of a DAG stand: layers from inputs to results, few crossings, short lines.

The usual three steps (Sugiyama): a layer for each node, an order in each layer by the middle of its neighbours, places
by the same middles. A line over several layers passes through a point in each. Lines that follow from others are left
out: where a model reaches the evaluation through its training, its own line there would say nothing new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

_SWEEPS = 12
_PLACING_SWEEPS = 200
GAP = 0.34
"""Between points of lines that pass a layer, in parts of a box with its distance to the next."""

Edge = tuple[str, str]


@dataclass(frozen=True)
class Layout:
    """Columns and layers. A place is the middle of a box: (column ≥ 0, layer), in boxes."""

    places: Mapping[str, tuple[float, int]]
    lines: Mapping[Edge, tuple[tuple[float, int], ...]]
    """Each line's places, from its source's to its target's."""
    num_layers: int
    width: float


def lay_out(nodes: Sequence[str], inputs: Mapping[str, Sequence[str]]) -> Layout:
    """`nodes` after all their inputs; `inputs` by node."""
    edges = necessary_edges(nodes, inputs)
    layer = _layers(nodes, edges)
    rows: list[list[str]] = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    for node in nodes:
        rows[layer[node]].append(node)
    chains: dict[Edge, list[str]] = {}
    weight = dict.fromkeys(nodes, 1.0)
    links: list[Edge] = []
    for source, target in edges:
        chain = [source]
        for depth in range(layer[source] + 1, layer[target]):
            point = f"{source}\0{target}\0{depth}"
            rows[depth].append(point)
            weight[point] = GAP
            chain.append(point)
        chain.append(target)
        chains[source, target] = chain
        links += list(pairwise(chain))
    above: dict[str, list[str]] = {name: [] for row in rows for name in row}
    below: dict[str, list[str]] = {name: [] for row in rows for name in row}
    for upper, lower in links:
        above[lower].append(upper)
        below[upper].append(lower)
    rows = _ordered(rows, above, below)
    column = _columns(rows, above, below, weight)
    depth_of = {name: depth for depth, row in enumerate(rows) for name in row}
    left = min((column[node] for node in column), default=0.0)
    place = {name: (column[name] - left, depth_of[name]) for name in column}
    return Layout(
        places={node: place[node] for node in nodes},
        lines={edge: tuple(place[name] for name in chain) for edge, chain in chains.items()},
        num_layers=len(rows),
        width=max((place[name][0] for name in place), default=0.0) + 1,
    )


def necessary_edges(nodes: Sequence[str], inputs: Mapping[str, Sequence[str]]) -> list[Edge]:
    """(source, target) of every input that no other input of the same target already needs."""
    needed: dict[str, set[str]] = {}
    for node in nodes:
        needed[node] = {name for source in inputs[node] for name in (source, *needed[source])}
    return [
        (source, node)
        for node in nodes
        for source in dict.fromkeys(inputs[node])
        if not any(source in needed[other] for other in inputs[node])
    ]


def _layers(nodes: Sequence[str], edges: Sequence[Edge]) -> dict[str, int]:
    """As early as the inputs allow; then what has none stands just above what needs it first."""
    layer = dict.fromkeys(nodes, 0)
    for node in nodes:
        layer[node] = max((layer[source] + 1 for source, target in edges if target == node), default=0)
    for node in reversed(nodes):
        uses = [layer[target] for source, target in edges if source == node]
        if uses and not any(target == node for _, target in edges):
            layer[node] = min(uses) - 1
    return layer


def _ordered(
    rows: list[list[str]], above: Mapping[str, Sequence[str]], below: Mapping[str, Sequence[str]]
) -> list[list[str]]:
    best, fewest = rows, _crossings(rows, below)
    for sweep in range(_SWEEPS):
        rows = [list(row) for row in rows]
        down = sweep % 2 == 0
        neighbours = above if down else below
        for depth in range(1, len(rows)) if down else range(len(rows) - 2, -1, -1):
            fixed = {name: at for at, name in enumerate(rows[depth - 1 if down else depth + 1])}
            at = {name: index for index, name in enumerate(rows[depth])}
            middle = {
                name: fmean(fixed[other] for other in neighbours[name]) if neighbours[name] else at[name]
                for name in rows[depth]
            }
            rows[depth].sort(key=lambda name: (middle[name], at[name]))
        crossings = _crossings(rows, below)
        if crossings < fewest:
            best, fewest = rows, crossings
    return best


def _crossings(rows: Sequence[Sequence[str]], below: Mapping[str, Sequence[str]]) -> int:
    count = 0
    for row, under in pairwise(rows):
        at = {name: index for index, name in enumerate(under)}
        ends = [at[target] for name in row for target in sorted(below[name], key=at.__getitem__)]
        count += sum(ends[i] > ends[j] for i in range(len(ends)) for j in range(i + 1, len(ends)))
    return count


def _columns(
    rows: Sequence[Sequence[str]],
    above: Mapping[str, Sequence[str]],
    below: Mapping[str, Sequence[str]],
    weight: Mapping[str, float],
) -> dict[str, float]:
    """Sweeps towards the neighbours' weighted middle: a line that passes layers is straight before it is short."""
    column: dict[str, float] = {}
    for row in rows:
        places = _spread(row, [float(index) for index in range(len(row))], [1.0] * len(row), weight)
        column |= dict(zip(row, places, strict=True))

    def pull(one: str, other: str) -> float:
        return (1, 3, 9)[(weight[one] == GAP) + (weight[other] == GAP)]

    for sweep in range(_PLACING_SWEEPS):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wanted, strengths = [], []
            for name in row:
                near = [(column[other], pull(name, other)) for other in (*above[name], *below[name])]
                total = sum(strength for _, strength in near)
                wanted.append(sum(at * strength for at, strength in near) / total if total else column[name])
                strengths.append(total or 1)
            column |= dict(zip(row, _spread(row, wanted, strengths, weight), strict=True))
    return column


def _spread(
    row: Sequence[str], wanted: Sequence[float], strengths: Sequence[float], weight: Mapping[str, float]
) -> list[float]:
    """Places in the given order at least as far apart as boxes are wide, near to the wanted ones.

    Neighbours that want the same place share its middle: runs of them are moved as one (pool adjacent violators).
    """
    offsets, at = [], 0.0
    for index, name in enumerate(row):
        if index:
            at += (weight[row[index - 1]] + weight[name]) / 2
        offsets.append(at)
    # (sum of strength · place, sum of strengths, number of boxes) of each run.
    runs: list[tuple[float, float, int]] = []
    for index, strength in enumerate(strengths):
        runs.append(((wanted[index] - offsets[index]) * strength, strength, 1))
        while len(runs) > 1 and runs[-2][0] / runs[-2][1] > runs[-1][0] / runs[-1][1]:
            moment, mass, count = runs.pop()
            runs[-1] = (runs[-1][0] + moment, runs[-1][1] + mass, runs[-1][2] + count)
    starts = [moment / mass for moment, mass, count in runs for _ in range(count)]
    return [start + offset for start, offset in zip(starts, offsets, strict=True)]
