"""Rows of a corpus: a document or a piece of one as token ids, which are targets, and the text that these decode to.

A row is keyed by the sha256 of its ids, so a file that was damaged, reordered or made by another tokenizer is noticed
by whoever reads it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.artifacts.errors import BadInputError, CorruptArtifactError
from tasks.artifacts.fingerprint import sha256_hex

_SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("input_ids", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),
        pa.field("loss_mask", pa.list_(pa.field("item", pa.uint8(), nullable=False)), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("num_bytes", pa.int64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("document", pa.string(), nullable=False),
    ]
)
COLUMNS: tuple[str, ...] = tuple(_SCHEMA.names)
_ROWS_PER_GROUP = 4096
_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True)
class Row:
    """T tokens: a document, or one of the pieces that a long text is cut into."""

    row_id: str
    input_ids: npt.NDArray[np.int32]
    """(T,)"""
    loss_mask: npt.NDArray[np.uint8]
    """(T,): 1 where the token is a target, that is predicted from the ones before it. Never at position 0."""
    text: str
    """What the targets decode to, special tokens left out."""
    num_bytes: int
    """UTF-8 bytes of `text`."""
    kind: str
    """"text" or "chat"."""
    source: str
    document: str = ""
    """Hex sha256 of the whole raw document's text: the same for all its pieces. Without one, `text` is the document."""

    def __post_init__(self) -> None:
        if not self.document:
            object.__setattr__(self, "document", sha256_hex(self.text.encode()))

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_targets(self) -> int:
        return int(self.loss_mask.sum())


def row_id_of(input_ids: npt.ArrayLike) -> str:
    """Hex sha256 of the ids as little-endian int32."""
    return hashlib.sha256(np.ascontiguousarray(input_ids, dtype="<i4").tobytes()).hexdigest()


def make_row(
    input_ids: npt.ArrayLike, loss_mask: npt.ArrayLike, text: str, kind: str, source: str, document: str
) -> Row:
    """A row with its id and its byte count; `document` is the hash of the whole document."""
    ids = np.ascontiguousarray(input_ids, dtype=np.int32)
    mask = np.ascontiguousarray(loss_mask, dtype=np.uint8)
    return Row(row_id_of(ids), ids, mask, text, len(text.encode()), kind, source, document)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Writes a parquet file whose bytes depend on the rows alone (under one version of pyarrow)."""
    table = pa.table(
        {
            "row_id": [row.row_id for row in rows],
            "input_ids": _lists([row.input_ids for row in rows], np.int32),
            "loss_mask": _lists([row.loss_mask for row in rows], np.uint8),
            "text": [row.text for row in rows],
            "num_bytes": [row.num_bytes for row in rows],
            "kind": [row.kind for row in rows],
            "source": [row.source for row in rows],
            "document": [row.document for row in rows],
        },
        schema=_SCHEMA,
    )
    pq.write_table(table, path, compression="zstd", row_group_size=_ROWS_PER_GROUP)


def _lists(arrays: list[npt.NDArray[np.generic]], dtype: type[np.generic]) -> pa.Array:
    offsets = np.cumsum([0, *(len(array) for array in arrays)], dtype=np.int32)
    values = pa.array(np.concatenate(arrays) if arrays else np.empty(0, dtype))
    item = pa.field("item", values.type, nullable=False)
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=pa.list_(item))


def read_rows(path: Path) -> list[Row]:
    """Reads what `write_rows` wrote and recomputes every row's id.

    Raises:
        BadInputError: the file is no corpus of this layout.
        CorruptArtifactError: an id does not belong to its tokens, or a mask has another length.
    """
    table = pq.read_table(path)
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise BadInputError(f"{path.name} has no column {missing[0]}; give a file that the corpus stage wrote")
    return rows_of(table, path.name, range(len(table)))


def rows_of(table: pa.Table, where: str, places: Sequence[int]) -> list[Row]:
    """The rows of a table with all `COLUMNS`; `where` and `places` name them in an error.

    Raises:
        CorruptArtifactError: an id does not belong to its tokens, or a mask has another length.
    """
    ids = _arrays(table.column("input_ids"), np.int32)
    masks = _arrays(table.column("loss_mask"), np.uint8)
    rest = table.select(["row_id", "text", "num_bytes", "kind", "source", "document"]).to_pylist()
    rows = []
    for place, input_ids, loss_mask, values in zip(places, ids, masks, rest, strict=True):
        if row_id_of(input_ids) != values["row_id"] or len(loss_mask) != len(input_ids):
            raise CorruptArtifactError(
                f"row {place} of {where} does not hold the tokens that its id was made of; delete the corpus artifact "
                f"and run again"
            )
        rows.append(Row(input_ids=input_ids, loss_mask=loss_mask, **values))
    return rows


def _arrays(column: pa.ChunkedArray, dtype: type[_Number]) -> list[npt.NDArray[_Number]]:
    """The lists of a column, one array a row; writable, since torch warns about arrays that are not."""
    arrays: list[npt.NDArray[_Number]] = []
    for chunk in column.chunks:
        values = chunk.values.to_numpy().astype(dtype)
        bounds = chunk.offsets.to_numpy()
        arrays += [values[start:end] for start, end in pairwise(bounds)]
    return arrays
