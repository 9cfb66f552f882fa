"""The corpus, read a shard at a time: the rows of a billion tokens with their texts would take some 10 GB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.artifacts.errors import BadInputError
from tasks.logits.rows import COLUMNS, Row, rows_of


class CorpusSplit:
    """One split's parquet file, as the corpus stage writes it."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        """Reads every row's length and checks its ids.

        Raises:
            BadInputError: the file is no corpus, or a row has no tokens or ids outside the teacher's vocabulary.
        """
        self._path = path
        self._file = pq.ParquetFile(path)
        if missing := [name for name in COLUMNS if name not in self._file.schema_arrow.names]:
            raise BadInputError(f"{path.name} has no column {missing[0]}; give a file that the corpus stage wrote")
        metadata = self._file.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])
        lengths: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)]
        for group in range(metadata.num_row_groups):
            ids, offsets = _flat(self._file.read_row_group(group, ["input_ids"]).column(0))
            part = np.diff(offsets)
            outside = np.diff(np.concatenate(([0], np.cumsum((ids < 0) | (ids >= vocab_size))))[offsets])
            if (bad := np.flatnonzero((part < 1) | (outside > 0))).size:
                row_id = self.row_id(int(self._starts[group] + bad[0]))
                raise BadInputError(
                    f"row {row_id} of {path.name} has no tokens or ids outside the teacher's {vocab_size}; build the "
                    f"corpus again"
                )
            lengths.append(part)
        self.lengths_N: npt.NDArray[np.int64] = np.concatenate(lengths)
        """Tokens of each row."""

    def __len__(self) -> int:
        return len(self.lengths_N)

    def row_id(self, index: int) -> str:
        """Hex sha256 of a row's ids."""
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        column = self._file.read_row_group(group, ["row_id"]).column(0)
        return str(column[index - int(self._starts[group])].as_py())

    def read(self, first: int, count: int) -> list[Row]:
        """Rows first … first + count − 1, with their ids recomputed.

        Raises:
            CorruptArtifactError: an id does not belong to its tokens, or a mask has another length.
        """
        groups = [
            group
            for group in range(len(self._starts) - 1)
            if self._starts[group] < first + count and self._starts[group + 1] > first
        ]
        table = self._file.read_row_groups(groups, list(COLUMNS))
        return rows_of(
            table.slice(first - int(self._starts[groups[0]]), count), self._path.name, range(first, first + count)
        )

    def read_some(self, indices: npt.NDArray[np.int64]) -> list[Row]:
        """Single rows, by ascending index; each group of rows is read once, and only where one is wanted."""
        rows: list[Row] = []
        for group in range(len(self._starts) - 1):
            start, stop = int(self._starts[group]), int(self._starts[group + 1])
            if (wanted := indices[(indices >= start) & (indices < stop)]).size:
                table = self._file.read_row_group(group, list(COLUMNS))
                rows += rows_of(table.take(pa.array(wanted - start)), self._path.name, wanted.tolist())
        return rows


def _flat(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """A column of lists as all values and the offsets at which each list starts, with the end of the last."""
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    offsets = array.offsets.to_numpy().astype(np.int64)
    values = array.values.to_numpy()[offsets[0] : offsets[-1]] if len(offsets) else array.values.to_numpy()
    return values, offsets - offsets[0]
