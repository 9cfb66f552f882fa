"""Where a training's documents come from: a corpus, a logit store, or several of these side by side."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, Literal, Protocol

import numpy as np

from tasks.artifacts.errors import BadInputError


class TrainingRow(Protocol):
    """One document. A row of a logit store also has topk_ids_PK, topk_logprobs_PK, tail_logprob_P and counts_PK."""

    @property
    def row_id(self) -> str: ...

    @property
    def input_ids(self) -> np.ndarray: ...

    @property
    def loss_mask(self) -> np.ndarray: ...


class RowSource(Protocol):
    """One split. All but `many` is cheap: every process asks it of rows that it does not read."""

    def __len__(self) -> int: ...

    def many(self, indices: Sequence[int]) -> Sequence[Any]:
        """Rows in the given order. Called from several threads."""
        ...

    def num_targets(self, index: int) -> int: ...

    def num_tokens(self, index: int) -> int: ...

    def row_id(self, index: int) -> str: ...


Teacher = Literal["none", "entries", "draws"]
"""What a row says besides its tokens: nothing, the teacher's largest probabilities, or draws from the teacher."""
SAID: dict[Teacher, str] = {
    "none": "has no teacher",
    "entries": "has the teacher's largest entries",
    "draws": "has draws from the teacher",
}


def teacher_of(row: TrainingRow) -> Teacher:
    """Which kind of row this is; a forward pass takes rows of one kind."""
    if not hasattr(row, "topk_ids_PK"):
        return "none"
    return "draws" if row.counts_PK.shape[1] else "entries"  # type: ignore[attr-defined]


class CorpusRows:
    """Rows of a corpus, without a teacher, in memory."""

    def __init__(self, rows: Sequence[TrainingRow]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def many(self, indices: Sequence[int]) -> list[TrainingRow]:
        return [self._rows[index] for index in indices]

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

    def many(self, indices: Sequence[int]) -> list[Any]:
        return [
            replace(
                row,
                topk_logprobs_PK=row.topk_logprobs_PK / self._temperature - row.tempered_lse_PM[:, self._index, None],
                tail_logprob_P=row.tempered_tail_PM[:, self._index],
            )
            for row in self._rows.many(indices)
        ]

    def num_targets(self, index: int) -> int:
        return self._rows.num_targets(index)

    def num_tokens(self, index: int) -> int:
        return self._rows.num_tokens(index)

    def row_id(self, index: int) -> str:
        return self._rows.row_id(index)


class FirstRows:
    """The first rows of a source, at most so many: a part that is random where the rows' order is."""

    def __init__(self, rows: RowSource, maximum: int | None) -> None:
        self._rows = rows
        self._size = len(rows) if maximum is None else min(maximum, len(rows))

    def __len__(self) -> int:
        return self._size

    def many(self, indices: Sequence[int]) -> Sequence[Any]:
        return self._rows.many(indices)

    def num_targets(self, index: int) -> int:
        return self._rows.num_targets(index)

    def num_tokens(self, index: int) -> int:
        return self._rows.num_tokens(index)

    def row_id(self, index: int) -> str:
        return self._rows.row_id(index)


class MixedRows:
    """Several sources as one, laid end to end in the order of their names.

    They may keep different numbers of entries. How often each is drawn is the order's business.
    """

    def __init__(self, sources: Mapping[str, RowSource], *, some_untaught: bool = False) -> None:
        """Reads one row of each source.

        Args:
            some_untaught: sources without a teacher may stand beside ones with one; of their rows only the
                cross-entropy is learnt.

        Raises:
            BadInputError: there is no source, one is empty, or they do not hold the same kind of teacher.
        """
        if not sources:
            raise BadInputError("a training needs at least one source of rows")
        self._sources = dict(sorted(sources.items()))
        self.sizes = {name: len(source) for name, source in self._sources.items()}
        kinds: dict[str, Teacher] = {}
        for name, source in self._sources.items():
            if not self.sizes[name]:
                raise BadInputError(f"the source {name} has no rows; leave it out or give it documents")
            kinds[name] = teacher_of(source.many([0])[0])
        self.kinds = tuple(kinds.values())
        if len(set(self.kinds) - ({"none"} if some_untaught else set())) > 1:
            said = ", ".join(f"{name} {SAID[kind]}" for name, kind in kinds.items())
            raise BadInputError(
                f"these sources cannot be mixed: {said}; use stores of one kind (top_k and adaptive support are one, "
                f"sampled is another)"
            )
        self._parts = list(self._sources.values())
        self._starts = [0, *accumulate(self.sizes.values())]

    def __len__(self) -> int:
        return self._starts[-1]

    def many(self, indices: Sequence[int]) -> list[Any]:
        rows: list[Any] = [None] * len(indices)
        for part, source in enumerate(self._parts):
            start, stop = self._starts[part : part + 2]
            places = [place for place, index in enumerate(indices) if start <= index < stop]
            if places:
                for place, row in zip(places, source.many([indices[place] - start for place in places]), strict=True):
                    rows[place] = row
        return rows

    def num_targets(self, index: int) -> int:
        source, place = self._at(index)
        return source.num_targets(place)

    def num_tokens(self, index: int) -> int:
        source, place = self._at(index)
        return source.num_tokens(place)

    def row_id(self, index: int) -> str:
        source, place = self._at(index)
        return source.row_id(place)

    def kind_of(self, index: int) -> Teacher:
        """What a row says besides its tokens."""
        return self.kinds[bisect_right(self._starts, index) - 1]

    def _at(self, index: int) -> tuple[RowSource, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)} mixed rows")
        part = bisect_right(self._starts, index) - 1
        return self._parts[part], index - self._starts[part]


def num_taught(source: RowSource, indices: Sequence[int]) -> int | None:
    """Targets with a teacher among these rows; None where the source has no rows with and without one."""
    if not isinstance(source, MixedRows) or "none" not in source.kinds or len(set(source.kinds)) == 1:
        return None
    return sum(source.num_targets(index) for index in indices if source.kind_of(index) != "none")


def of_one_kind(source: RowSource, indices: Sequence[int]) -> list[list[int]]:
    """The indices in groups that a forward pass can take: rows with a teacher apart from rows without."""
    if not isinstance(source, MixedRows):
        return [list(indices)]
    groups: dict[Teacher, list[int]] = {}
    for index in indices:
        groups.setdefault(source.kind_of(index), []).append(index)
    return [groups[kind] for kind in sorted(groups)]
