"""Reads a process's share of the steps to come on threads, so that S3 and decoding hide behind the training."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from tasks.artifacts.errors import CorruptArtifactError
from tasks.training.batches import Batch, collate
from tasks.training.order import StepOrder
from tasks.training.packing import Packing, micro_batches, num_padded
from tasks.training.rows import RowSource, num_taught, of_one_kind

STEPS_AHEAD = 2
READERS = 4
"""Threads that read rows: as many requests are under way at one time."""


@dataclass(frozen=True)
class StepBatches:
    """One process's share of a step, and what all processes know of the whole.

    num_targets, num_tokens and num_padded (tokens of padding) are of all processes together. num_taught: of the
    targets those with a teacher, where rows with and without one are mixed. wait_seconds: how long `load` kept its
    caller.
    """

    step: int
    batches: list[Batch]
    num_targets: int
    num_tokens: int
    num_padded: int
    wait_seconds: float
    num_taught: int | None = None


@dataclass(frozen=True)
class StepPass:
    """A forward pass of a step: its documents, and how many of their tokens are targets."""

    row_ids: tuple[str, ...]
    num_targets: int


class StepLoader:
    """One process's share of the steps. Every process gets the same number of batches in a step.

    Memory: its documents of STEPS_AHEAD + 2 steps, 12 bytes a kept entry.
    """

    def __init__(
        self, source: RowSource, order: StepOrder, num_steps: int, packing: Packing, rank: int, world_size: int
    ) -> None:
        """
        Raises:
            BadInputError: a document is longer than a packed row.
        """
        packing.require(source)
        self._source = source
        self._order = order
        self._num_steps = num_steps
        self._packing = packing
        self._rank = rank
        self._world_size = world_size
        self._steps = ThreadPoolExecutor(1, thread_name_prefix="steps")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="rows")
        self._ahead: dict[int, Future[StepBatches]] = {}

    def prepare(self, step: int) -> None:
        """Begins to read a step and the ones after it; `load` then finds them."""
        wanted = range(step, min(step + 1 + STEPS_AHEAD, self._num_steps))
        for other in [other for other in self._ahead if other not in wanted]:
            self._ahead.pop(other).cancel()
        for one in wanted:
            if one not in self._ahead:
                self._ahead[one] = self._steps.submit(self._read, one)

    def load(self, step: int) -> StepBatches:
        """The batches of a step; raises what reading them raised."""
        start = time.perf_counter()
        self.prepare(step)
        batches = self._ahead.pop(step).result()
        return replace(batches, wait_seconds=time.perf_counter() - start)

    def passes(self, step: int) -> list[StepPass]:
        """Forward passes of a step, of all processes together: the one at place p is batch p // world_size of the
        process p % world_size. What only keeps a process in step is none."""
        indices = [[index for row in group for index in row] for group in self._plan(step)[0]]
        return [
            StepPass(
                tuple(self._source.row_id(index) for index in group),
                sum(self._source.num_targets(index) for index in group),
            )
            for group in indices
        ]

    def close(self) -> None:
        """Ends the threads."""
        for executor in (self._steps, self._readers):
            executor.shutdown(cancel_futures=True)

    def _plan(self, step: int) -> tuple[list[list[list[int]]], dict[int, int]]:
        """The step's forward passes, and the tokens of each of its rows."""
        indices = self._order.rows(step)
        lengths = {index: self._source.num_tokens(index) for index in indices}
        passes = [micro_batches(group, lengths, self._packing) for group in of_one_kind(self._source, indices)]
        return [batch for group in passes for batch in group], lengths

    def _read(self, step: int) -> StepBatches:
        groups, lengths = self._plan(step)
        own = groups[self._rank :: self._world_size]
        # A process without any pass runs the shortest document.
        chosen = own or [[[min(lengths, key=lambda index: (lengths[index], index))]]]
        rows = self._rows(sorted({index for group in chosen for row in group for index in row}))
        batches = [collate([[rows[index] for index in row] for row in group]) for group in chosen]
        if len(own) < -(-len(groups) // self._world_size):
            batches = [*batches[: len(own)], batches[-1].without_targets()]
        indices = [index for group in groups for row in group for index in row]
        return StepBatches(
            step,
            batches,
            num_targets=sum(self._source.num_targets(index) for index in indices),
            num_tokens=sum(lengths[index] for index in indices),
            num_padded=sum(num_padded(group, lengths) for group in groups),
            wait_seconds=0.0,
            num_taught=num_taught(self._source, indices),
        )

    def _rows(self, indices: Sequence[int]) -> dict[int, Any]:
        """Rows by index, compared with what the index of rows says of them."""
        size = -(-len(indices) // READERS)
        parts = [indices[start : start + size] for start in range(0, len(indices), size)]
        rows = [row for part in self._readers.map(self._source.many, parts) for row in part]
        for index, row in zip(indices, rows, strict=True):
            found = (row.row_id, len(row.input_ids), int(row.loss_mask[1:].sum()))
            said = (self._source.row_id(index), self._source.num_tokens(index), self._source.num_targets(index))
            if found != said:
                raise CorruptArtifactError(
                    f"the index of rows has {said[0]} with {said[1]} tokens and {said[2]} targets, but {found[0]} with "
                    f"{found[1]} and {found[2]} was read; write the store again"
                )
        return dict(zip(indices, rows, strict=True))


def batches_ahead(source: RowSource, groups: Sequence[Sequence[Sequence[int]]]) -> Generator[Batch]:
    """The batch of each group of packed rows of row indices, in order; the next ones are read meanwhile.

    Memory: READERS + 1 batches. Close it where it is not read to its end.
    """
    with ThreadPoolExecutor(READERS, thread_name_prefix="batches") as readers:
        ahead: deque[Future[Batch]] = deque()
        for group in groups:
            ahead.append(readers.submit(_read_batch, source, group))
            if len(ahead) > READERS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _read_batch(source: RowSource, group: Sequence[Sequence[int]]) -> Batch:
    rows = iter(source.many([index for row in group for index in row]))
    return collate([[next(rows) for _ in row] for row in group])
