"""Writes one shard as a zarr v3 group in a local folder. Equal rows and positions give equal bytes.

A document's bytes lie in a spool file beside the folder until the longest document is known, since all chunks of an
array have one shape. So memory does not grow with the shard: 50 MB and the document at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore

from tasks.logits.codec import DocumentCodec
from tasks.logits.positions import Positions
from tasks.logits.prior import Prior
from tasks.logits.rows import Row
from tasks.logits.schema import LogitFormat, ShardHeader, ShardPlan

OBJECT_BYTES = 32 * 2**20
"""Bytes of documents, uncompressed and with their padding, that become one object: it is compressed in memory."""
MAX_DOCUMENTS_PER_OBJECT = 1024
"""An object's index has 16 bytes a document and is read before the first of them."""


class ShardWriter:
    """Takes a shard's documents in any order. One thread at a time."""

    def __init__(self, directory: Path, plan: ShardPlan, form: LogitFormat, rows: Sequence[Row], prior: Prior) -> None:
        """
        Args:
            directory: an empty or a new folder.
            plan: which rows of the corpus these are.
            form: what the numbers mean.
            rows: the planned rows, in corpus order, each with at least one token.
            prior: the one that `form` names.

        Raises:
            ValueError: these are not as many rows as planned, or one has no token.
        """
        if len(rows) != plan.num_rows or any(len(row.input_ids) < 1 for row in rows):
            raise ValueError(f"shard {plan.name} of {plan.num_rows} rows got {len(rows)} rows, or one without tokens")
        self._directory, self._plan, self._form, self._rows = directory, plan, form, rows
        self._codec = DocumentCodec(form, prior)
        directory.mkdir(parents=True, exist_ok=True)
        self._spool = directory.with_name(f"{directory.name}.spool").open("w+b")
        self._places: dict[int, tuple[int, list[int]]] = {}

    def add(self, index: int, positions: Positions) -> None:
        """Encodes the T − 1 positions of the shard's row `index`.

        Raises:
            ValueError: they do not fit the row, or one is no distribution.
        """
        row = self._rows[index]
        if index in self._places:
            raise ValueError(f"row {index} of shard {self._plan.name} was given twice")
        parts = self._codec.encode(row.input_ids, row.loss_mask, positions)
        start = self._spool.seek(0, 2)
        for part in parts:
            self._spool.write(part.tobytes())
        self._places[index] = start, [len(part) for part in parts]

    def close(self) -> ShardHeader:
        """Writes the group.

        Raises:
            ValueError: a row was not given.
        """
        missing = sorted(set(range(len(self._rows))) - set(self._places))
        if missing:
            raise ValueError(f"shard {self._plan.name} got no positions for its row {missing[0]}")
        lengths_N = np.array([len(row.input_ids) for row in self._rows], np.int64)
        targets_N = np.array([row.loss_mask[1:].sum() for row in self._rows], np.int32)
        header = ShardHeader(
            **self._form.model_dump(include=set(LogitFormat.model_fields)),
            shard=self._plan.name,
            split=self._plan.split,
            first_row=self._plan.first_row,
            num_rows=len(self._rows),
            num_tokens=int(lengths_N.sum()),
            num_targets=int(targets_N.sum()),
        )
        # Without write_empty_chunks a chunk of zeros is left out, and then looks like one that was lost.
        with zarr.config.set({"array.write_empty_chunks": True}):
            group = zarr.create_group(LocalStore(self._directory), attributes=header.model_dump(mode="json"))
            ids = b"".join(bytes.fromhex(row.row_id) for row in self._rows)
            small: dict[str, npt.NDArray[Any]] = {
                "offsets": np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths_N))),
                "num_targets": targets_N,
                "row_id": np.frombuffer(ids, np.uint8).reshape(-1, 32),
            }
            for name, values in small.items():
                array = group.create_array(
                    name,
                    shape=values.shape,
                    dtype=values.dtype,
                    chunks=values.shape,
                    compressors=[BloscCodec(cname="zstd", clevel=5, shuffle="shuffle"), Crc32cCodec()],
                    fill_value=0,
                )
                array[:] = values
            self._write_documents(group)
        self.discard()
        return header

    def discard(self) -> None:
        """Removes the spool file; a writer that is not closed needs this."""
        self._spool.close()
        Path(self._spool.name).unlink(missing_ok=True)

    def _write_documents(self, group: zarr.Group) -> None:
        count, num_rows = len(self._rows), self._codec.num_rows
        width = max(max(lengths) for _, lengths in self._places.values())
        per_chunk = min(self._form.documents_per_chunk, count)
        chunks = max(1, min(OBJECT_BYTES // (num_rows * width), MAX_DOCUMENTS_PER_OBJECT, count) // per_chunk)
        per_object = chunks * per_chunk
        array = group.create_array(
            "documents",
            shape=(count, num_rows, width),
            dtype=np.uint8,
            chunks=(per_chunk, num_rows, width),
            shards=(per_object, num_rows, width),
            # A block a row: each has statistics of its own. zstd's lowest level is also the smallest here, as better
            # search finds matches by chance that cost more than the bytes. The sums make a flipped bit an error at the
            # read instead of a wrong number in training.
            compressors=[
                BloscCodec(cname="zstd", clevel=1, shuffle="noshuffle", typesize=1, blocksize=width),
                Crc32cCodec(),
            ],
            fill_value=0,
        )
        for first in range(0, count, per_object):
            last = min(first + per_object, count)
            block = np.zeros((last - first, num_rows, width), np.uint8)
            for index in range(first, last):
                start, lengths = self._places[index]
                self._spool.seek(start)
                for number, length in enumerate(lengths):
                    block[index - first, number, :length] = np.frombuffer(self._spool.read(length), np.uint8)
            array[first:last] = block
