"""Which rows make an optimiser step, and how they become tensors.

The order is a function of (seed, number of rows, rows a step) alone: step s takes the positions s·R … (s+1)·R − 1 of an
endless stream of permutations, so the data position is the step number and a resumed run reads what it would have read.
A step's rows are sorted by length and cut into micro-batches; with equal `micro_batch_rows` these are the same sets
whatever the number of processes.

Rows are padded on the right. Under causal attention no real token sees what comes after it, so padding needs no
attention mask and a document's loss does not depend on its neighbours (to rounding: 1e-5 relative in float32).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tasks.artifacts.errors import CorruptArtifactError
from tasks.training.losses import Targets


class TrainingRow(Protocol):
    """One document. A row of a logit store also has topk_ids_PK, topk_logprobs_PK, tail_logprob_P and counts_PK."""

    @property
    def row_id(self) -> str: ...

    @property
    def input_ids(self) -> np.ndarray: ...

    @property
    def loss_mask(self) -> np.ndarray: ...


class RowSource(Protocol):
    """One split. `num_targets` and `num_tokens` are cheap: every process asks them of rows that it does not read."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def num_targets(self, index: int) -> int: ...

    def num_tokens(self, index: int) -> int: ...

    def row_id(self, index: int) -> str: ...


class CorpusRows:
    """Rows of a corpus, without a teacher, in memory."""

    def __init__(self, rows: Sequence[TrainingRow]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> TrainingRow:
        return self._rows[index]

    def num_targets(self, index: int) -> int:
        return int(self._rows[index].loss_mask[1:].sum())

    def num_tokens(self, index: int) -> int:
        return len(self._rows[index].input_ids)

    def row_id(self, index: int) -> str:
        return self._rows[index].row_id


class TemperedRows:
    """Rows of a logit store with the teacher at another temperature than 1.

    Exact although the entries are truncated, because the dump took normaliser and tail there over the full vocabulary.
    """

    def __init__(self, rows: RowSource, temperature: float, index: int) -> None:
        """`index`: the temperature's place in the store's list."""
        self._rows = rows
        self._temperature = temperature
        self._index = index

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        row = self._rows[index]
        return replace(
            row,
            topk_logprobs_PK=row.topk_logprobs_PK / self._temperature - row.tempered_lse_PM[:, self._index, None],
            tail_logprob_P=row.tempered_tail_PM[:, self._index],
        )

    def num_targets(self, index: int) -> int:
        return self._rows.num_targets(index)

    def num_tokens(self, index: int) -> int:
        return self._rows.num_tokens(index)

    def row_id(self, index: int) -> str:
        return self._rows.row_id(index)


@dataclass(frozen=True)
class Batch:
    """B documents of at most T tokens with N target positions among them.

    input_ids_BT: int64, padded with 0 on the right. positions_N: indices into the flattened B·T hidden states whose
    prediction is judged.
    """

    row_ids: tuple[str, ...]
    input_ids_BT: Tensor
    positions_N: Tensor
    targets: Targets

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(self.row_ids, self.input_ids_BT.to(device), self.positions_N.to(device), self.targets.to(device))

    def without_targets(self) -> Batch:
        """The same documents with nothing to predict: what a process runs while others still have batches."""
        return Batch(self.row_ids, self.input_ids_BT, self.positions_N[:0], self.targets.head(0))


def collate(rows: Sequence[Any]) -> Batch:
    """Pads rows and picks their targets: position p counts iff loss_mask[p + 1], and its gold token is p + 1's.

    Raises:
        CorruptArtifactError: a target of a logit row keeps no teacher entry at all.
    """
    width = max(len(row.input_ids) for row in rows)
    input_ids_BT = np.zeros((len(rows), width), np.int64)
    positions, gold, topk_ids, topk_logprobs, tails, draws = [], [], [], [], [], []
    for index, row in enumerate(rows):
        input_ids_BT[index, : len(row.input_ids)] = row.input_ids
        judged = np.flatnonzero(row.loss_mask[1:])
        positions.append(index * width + judged)
        gold.append(row.input_ids[judged + 1])
        if not hasattr(row, "topk_ids_PK"):
            continue
        topk_ids.append(row.topk_ids_PK[judged])
        topk_logprobs.append(row.topk_logprobs_PK[judged])
        tails.append(row.tail_logprob_P[judged])
        draws.append(row.counts_PK[judged])
        if (topk_ids[-1][:, 0] < 0).any():
            raise CorruptArtifactError(f"row {row.row_id} of the logit store keeps no entry at a target; dump it again")
    gold_N = _tensor(gold, np.int64)
    targets = Targets.of_gold(gold_N)
    if topk_ids:
        targets = Targets(
            gold_N,
            _tensor(topk_ids, np.int64),
            _tensor(topk_logprobs, np.float32),
            _tensor(tails, np.float32),
            _tensor(draws, np.float32) if draws[0].shape[1] else None,
        )
    return Batch(
        tuple(row.row_id for row in rows), torch.from_numpy(input_ids_BT), _tensor(positions, np.int64), targets
    )


def _tensor(parts: Sequence[np.ndarray], dtype: type[np.generic]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(dtype))


class StepOrder:
    """The rows of each step."""

    def __init__(self, num_rows: int, rows_per_step: int, seed: int) -> None:
        self.num_rows = num_rows
        self.rows_per_step = rows_per_step
        self.seed = seed
        self._epoch = -1
        self._permutation = np.empty(0, np.int64)

    def rows(self, step: int) -> list[int]:
        """Row indices of a step, in the order of the stream."""
        start = step * self.rows_per_step
        return [self._at(position) for position in range(start, start + self.rows_per_step)]

    def _at(self, position: int) -> int:
        epoch, offset = divmod(position, self.num_rows)
        if epoch != self._epoch:
            # The raw counter-based stream is fixed by its definition; numpy's shuffles may change between versions.
            keys = np.random.Philox(key=[self.seed, epoch]).random_raw(self.num_rows)
            self._epoch, self._permutation = epoch, np.argsort(keys, kind="stable")
        return int(self._permutation[offset])


def micro_batches(source: RowSource, indices: Sequence[int], micro_batch_rows: int) -> list[list[int]]:
    """Cuts row indices into groups of similar length, longest first: what does not fit in memory fails at once."""
    ordered = sorted(indices, key=lambda index: (-source.num_tokens(index), index))
    return [ordered[start : start + micro_batch_rows] for start in range(0, len(ordered), micro_batch_rows)]


@dataclass(frozen=True)
class StepBatches:
    """One process's share of a step, and what all processes know of the whole."""

    step: int
    batches: list[Batch]
    num_targets: int
    num_tokens: int


class StepLoader:
    """Reads one step ahead on a thread of its own, so that decoding or S3 hides behind the training."""

    def __init__(
        self, source: RowSource, order: StepOrder, num_steps: int, micro_batch_rows: int, rank: int, world_size: int
    ) -> None:
        self._source = source
        self._order = order
        self._num_steps = num_steps
        self._micro_batch_rows = micro_batch_rows
        self._rank = rank
        self._world_size = world_size
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self._ahead: dict[int, Future[StepBatches]] = {}

    def load(self, step: int) -> StepBatches:
        """The batches of a step; raises what reading them raised."""
        current = self._ahead.pop(step, None) or self._thread.submit(self._read, step)
        if step + 1 < self._num_steps:
            self._ahead = {step + 1: self._thread.submit(self._read, step + 1)}
        return current.result()

    def row_ids(self, step: int, group: int) -> list[str]:
        """The documents of a step's micro-batch, of whichever process it is."""
        return [self._source.row_id(index) for index in self._groups(step)[group]]

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _groups(self, step: int) -> list[list[int]]:
        return micro_batches(self._source, self._order.rows(step), self._micro_batch_rows)

    def _read(self, step: int) -> StepBatches:
        groups = self._groups(step)
        indices = [index for group in groups for index in group]
        own = groups[self._rank :: self._world_size]
        batches = [collate([self._source[index] for index in group]) for group in own]
        return StepBatches(
            step=step,
            batches=batches,
            num_targets=sum(self._source.num_targets(index) for index in indices),
            num_tokens=sum(self._source.num_tokens(index) for index in indices),
        )


def split_batches(source: RowSource, micro_batch_rows: int, rank: int, world_size: int) -> list[list[int]]:
    """A process's share of a whole split; an empty group where others have one more batch, so that all run in step."""
    groups = micro_batches(source, range(len(source)), micro_batch_rows)
    groups += [[] for _ in range(-len(groups) % world_size)]
    return groups[rank::world_size]
