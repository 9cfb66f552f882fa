"""The held-out split: judged before, while and after a training, always in the same forward passes."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing

import torch

from tasks.training.engine import DivergedError, TrainingEngine
from tasks.training.loader import batches_ahead
from tasks.training.packing import Packing, split_batches
from tasks.training.processes import Processes
from tasks.training.rows import RowSource


class DivergedHeldoutError(DivergedError):
    """A forward pass of the held-out split gives no finite number. `row_ids`: its documents."""

    def __init__(self, loss: float, row_ids: list[str]) -> None:
        super().__init__(f"the loss of the held-out split is {loss}")
        self.row_ids = row_ids


class HeldoutSplit:
    """One process's share of the split. All processes call every method together."""

    def __init__(self, source: RowSource, packing: Packing, processes: Processes) -> None:
        """
        Raises:
            BadInputError: a document is longer than a packed row.
        """
        self._source = source
        self._packing = packing
        self._processes = processes
        self._groups = split_batches(source, packing, processes.rank, processes.world_size)

    def judge(self, engine: TrainingEngine, after_pass: Callable[[int, int], None]) -> tuple[float, float, int]:
        """Σ forward KL and Σ CE at temperature 1 in nats, and the number of targets, over the whole split.

        `after_pass` is told how many of this process's passes are done, and of how many; it may raise.

        Raises:
            DivergedHeldoutError: on every process, at the first pass without a finite sum.
        """
        rank, world_size = self._processes.rank, self._processes.world_size
        total_3 = torch.zeros(3, dtype=torch.float64)
        with closing(batches_ahead(self._source, [group or [[0]] for group in self._groups])) as batches:
            for index, (group, batch) in enumerate(zip(self._groups, batches, strict=True)):
                # One column a process, so that the sums do not depend on how many there are.
                sums_3W = torch.zeros(3, world_size, dtype=torch.float64)
                sums_3W[:, rank] = engine.judge(batch if group else batch.without_targets())
                for place, sums_3 in enumerate(self._processes.sum(sums_3W).T):
                    if not bool(sums_3.isfinite().all()):
                        broken = next(value for value in sums_3.tolist() if not math.isfinite(value))
                        raise DivergedHeldoutError(broken, self._row_ids(index * world_size + place))
                    total_3 += sums_3
                after_pass(index + 1, len(self._groups))
        kl, ce, count = total_3.tolist()
        return kl, ce, int(count)

    def _row_ids(self, group: int) -> list[str]:
        """The documents of a pass of any process."""
        rows = split_batches(self._source, self._packing, 0, 1)[group]
        return [self._source.row_id(index) for row in rows for index in row]
