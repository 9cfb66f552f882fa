"""Which documents share a row, and which rows a forward pass: a function of their lengths alone.

Documents are put into rows by best-fit decreasing, rows into forward passes by length, the largest pass first, so that
what does not fit in memory fails at once. The passes are the same whatever the number of processes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.artifacts.errors import BadInputError
from tasks.training.rows import RowSource


@dataclass(frozen=True)
class Packing:
    """Sizes in tokens. `pack_tokens`: of a packed row; None: as long as the longest document at hand."""

    micro_batch_tokens: int
    pack_tokens: int | None = None

    def require(self, source: RowSource) -> None:
        """Looks at the lengths of all rows, once.

        Raises:
            BadInputError: a document is longer than a packed row.
        """
        if self.pack_tokens is None:
            return
        for index in range(len(source)):
            tokens = source.num_tokens(index)
            if tokens > self.pack_tokens:
                raise BadInputError(
                    f"row {source.row_id(index)} has {tokens} tokens, runtime.pack_tokens is {self.pack_tokens}; set "
                    f"that to the length of the longest document, or leave it out"
                )

    def longest(self, *sources: RowSource) -> int:
        """Tokens of the longest row that documents of these sources can make."""
        return max([self.pack_tokens or 0, *(source.num_tokens(i) for source in sources for i in range(len(source)))])


def micro_batches(indices: Sequence[int], lengths: Mapping[int, int], packing: Packing) -> list[list[list[int]]]:
    """Forward passes of packed rows of row indices, the largest first.

    A pass holds as many packed rows as `micro_batch_tokens` allows, padding counted, and at least one. `lengths`: the
    tokens of each index.
    """
    rows = packed_rows(indices, lengths, packing.pack_tokens or max(lengths.values()))
    widths = [_tokens(row, lengths) for row in rows]
    batches: list[list[list[int]]] = []
    areas: list[int] = []
    width = 0
    for place in sorted(range(len(rows)), key=lambda place: -widths[place]):
        if batches and (len(batches[-1]) + 1) * width <= packing.micro_batch_tokens:
            batches[-1].append(rows[place])
            areas[-1] += width
        else:
            width = widths[place]
            batches.append([rows[place]])
            areas.append(width)
    return [batches[place] for place in sorted(range(len(batches)), key=lambda place: -areas[place])]


def packed_rows(indices: Sequence[int], lengths: Mapping[int, int], limit: int) -> list[list[int]]:
    """Row indices by packed row, each with at most `limit` tokens: best-fit decreasing.

    The longest document comes first, each goes where it leaves the least room, and equals go by place in `indices`.
    """
    rows: list[list[int]] = []
    # (tokens free, row), ascending: the first that is large enough is the best fit.
    free: list[tuple[int, int]] = []
    for index in sorted(indices, key=lambda index: -lengths[index]):
        found = bisect_left(free, (lengths[index], -1))
        if found < len(free):
            room, row = free.pop(found)
        else:
            room, row = limit, len(rows)
            rows.append([])
        rows[row].append(index)
        insort(free, (room - lengths[index], row))
    return rows


def num_padded(batch: Sequence[Sequence[int]], lengths: Mapping[int, int]) -> int:
    """Tokens of padding in a forward pass."""
    widths = [_tokens(row, lengths) for row in batch]
    return len(widths) * max(widths) - sum(widths)


def split_batches(source: RowSource, packing: Packing, rank: int, world_size: int) -> list[list[list[int]]]:
    """A process's share of a whole split; [] where others have one pass more, so that all run in step.

    Raises:
        BadInputError: a document is longer than a packed row.
    """
    packing.require(source)
    indices = range(len(source))
    batches = micro_batches(indices, {index: source.num_tokens(index) for index in indices}, packing)
    batches += [[] for _ in range(-len(batches) % world_size)]
    return batches[rank::world_size]


def _tokens(row: Sequence[int], lengths: Mapping[int, int]) -> int:
    return sum(lengths[index] for index in row)
