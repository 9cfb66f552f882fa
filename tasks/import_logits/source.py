"""The parquet files of a set, read a few documents at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.artifacts.errors import BadInputError
from tasks.import_logits import distillkit, plain
from tasks.import_logits.raw import Columns, Ragged, RawDocument
from tasks.import_logits.stage import DistillKitFormat, ParquetSource, PlainFormat
from tasks.logits.schema import Split

DOCUMENTS_AT_ONCE = 8
"""Of 8192 tokens and 128 entries they take 100 MB."""


_FLAT = {"input_ids", "loss_mask", "tail_logprob", "gold_logprob", "labels", "attention_mask"}
"""Columns with a number a token or position; the others have a list of them."""


@dataclass(frozen=True, order=True, slots=True)
class Place:
    """A document: its file's number, and its row there."""

    file: int
    row: int


class SourceFiles:
    """All files of the source."""

    def __init__(self, source: ParquetSource, form: PlainFormat | DistillKitFormat) -> None:
        """Looks at each file's columns.

        Raises:
            BadInputError: a file is no parquet, lacks a column, or two files say different things of their numbers.
        """
        train, heldout = source.files()
        self._form = form
        self._paths: list[Path] = [*train, *heldout]
        self._num_train = len(train)
        self._max_rows = source.max_rows
        self.heldout_named = bool(heldout)
        """Whether files say what is held out."""
        required: tuple[str, ...] = plain.REQUIRED
        optional: tuple[str, ...] = plain.OPTIONAL
        if isinstance(form, DistillKitFormat):
            required, optional = distillkit.required_columns(form), distillkit.OPTIONAL
        heads = []
        self._columns: list[list[str]] = []
        for path in self._paths:
            try:
                schema = pq.read_schema(path)
            except (pa.ArrowException, OSError) as error:
                raise BadInputError(f"{path} cannot be read as parquet ({error}); leave it out of paths") from error
            if missing := [name for name in required if name not in schema.names]:
                raise BadInputError(
                    f"{path} has no column {missing[0]}, only {', '.join(schema.names)}; set recipe.format of "
                    f"import_logits to what the set is"
                )
            self._columns.append([*required, *(name for name in optional if name in schema.names)])
            heads.append(plain.Head.of_file(schema, str(path)) if isinstance(form, PlainFormat) else None)
        if different := [path for path, head in zip(self._paths, heads, strict=True) if head != heads[0]]:
            raise BadInputError(
                f"{different[0]} was exported from another store than {self._paths[0]}: teacher, tokenizer, support or "
                f"temperatures differ; import them one by one"
            )
        self.head: plain.Head | None = heads[0]

    def name(self, place: Place) -> str:
        """For messages."""
        return f"{self._paths[place.file]}, row {place.row}"

    def token_ids(self, split: Split) -> Iterator[tuple[Place, npt.NDArray[np.int64]]]:
        """Each document's tokens in the files named for a split, without distributions."""
        numbers = range(self._num_train) if split == "train" else range(self._num_train, len(self._paths))
        wanted: dict[int, set[int] | None] = dict.fromkeys(numbers)
        for place, columns in self._rows(wanted, ["input_ids"]):
            yield place, columns.tokens()

    def masked_tokens(self, places: Sequence[Place]) -> Iterator[RawDocument]:
        """Documents at ascending places with their loss masks, without distributions."""
        nothing_RK = np.empty((0, 0), np.float32)
        for place, columns in self._rows(_by_file(places), ["input_ids", "loss_mask", *distillkit.OPTIONAL]):
            distill = isinstance(self._form, DistillKitFormat)
            mask_T = distillkit.mask_of(columns) if distill else columns.flat("loss_mask")
            yield RawDocument(self.name(place), columns.tokens(), nothing_RK.astype(np.int64), nothing_RK, mask_T)

    def documents(self, places: Sequence[Place]) -> Iterator[RawDocument]:
        """Documents at ascending places; what lies between is passed over."""
        for place, columns in self._rows(_by_file(places), None):
            where = self.name(place)
            if isinstance(self._form, DistillKitFormat):
                yield distillkit.decode(columns, self._form, where)
            else:
                yield plain.decode(columns, where)

    def _rows(
        self, wanted: Mapping[int, set[int] | None], only: Sequence[str] | None
    ) -> Iterator[tuple[Place, Columns]]:
        """Rows by file, all where that says None, with all columns or with those of `only` that the file has."""
        left = self._max_rows
        for number, path in enumerate(self._paths):
            first, rows = 0, wanted.get(number)
            limit = left if number < self._num_train else None
            names = [name for name in self._columns[number] if only is None or name in only]
            with pq.ParquetFile(path) as file:
                if limit is not None:
                    left = max(0, limit - file.metadata.num_rows)
                if number not in wanted:
                    continue
                for group in range(file.num_row_groups):
                    end = first + file.metadata.row_group(group).num_rows
                    here = range(first, end if limit is None else min(end, limit))
                    if chosen := [Place(number, row) for row in here if rows is None or row in rows]:
                        yield from self._of_group(file, group, first, chosen, names)
                    first = end

    def _of_group(
        self, file: pq.ParquetFile, group: int, first: int, places: list[Place], names: list[str]
    ) -> Iterator[tuple[Place, Columns]]:
        at = 0
        for batch in file.iter_batches(DOCUMENTS_AT_ONCE, row_groups=[group], columns=names):
            here = [place for place in places if first + at <= place.row < first + at + len(batch)]
            if here:
                about = f"{self.name(here[0])} and following:"
                lists = {name: _Lists(batch.column(name), name not in _FLAT, f"{about} {name}") for name in names}
                for place in here:
                    yield place, Columns({name: column[place.row - first - at] for name, column in lists.items()})
            at += len(batch)
            if not places or places[-1].row < first + at:
                return


def _by_file(places: Sequence[Place]) -> dict[int, set[int] | None]:
    found: dict[int, set[int] | None] = {}
    for place in places:
        rows = found.setdefault(place.file, set())
        assert rows is not None
        rows.add(place.row)
    return found


class _Lists:
    """A batch's column of lists, or of lists of lists, as numpy arrays."""

    def __init__(self, array: pa.Array, nested: bool, where: str) -> None:
        self._offsets, inner = _opened(array, where)
        self._inner: Any = None
        if nested:
            self._inner, inner = _opened(inner, where)
        if inner.null_count or not (pa.types.is_integer(inner.type) or pa.types.is_floating(inner.type)):
            raise BadInputError(
                f"{where} is {array.type} or lacks a value, where it needs numbers; write the set again"
            )
        self._values = inner.to_numpy(zero_copy_only=False)

    def __getitem__(self, index: int) -> Any:
        start, stop = self._offsets[index], self._offsets[index + 1]
        if self._inner is None:
            return self._values[start:stop]
        offsets = self._inner[start : stop + 1]
        return Ragged(np.diff(offsets), self._values[offsets[0] : offsets[-1]])


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _opened(array: pa.Array, where: str) -> tuple[Any, pa.Array]:
    """Offsets of the lists in their values, and the values."""
    if not _is_list(array.type) or array.null_count:
        raise BadInputError(f"{where} is {array.type} or has empty rows, where lists are needed; write the set again")
    if pa.types.is_fixed_size_list(array.type):
        array = array.cast(pa.list_(array.type.value_type))
    return array.offsets.to_numpy().astype(np.int64), array.values
