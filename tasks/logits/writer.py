"""Writes one shard as a zarr v3 group in a local folder. Equal rows and positions give equal bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore

from tasks.logits.codec import Positions, codec_of, id_dtype
from tasks.logits.rows import Row
from tasks.logits.schema import LogitFormat, ShardHeader, ShardPlan

CHUNK_LENGTH = 4096
"""Tokens or positions a chunk: 2 MB decoded at 64 entries, what one random row costs to read at most twice."""


def write_shard(
    directory: Path, plan: ShardPlan, form: LogitFormat, rows: Sequence[Row], positions: Positions
) -> ShardHeader:
    """Writes the group into `directory`, which it creates.

    Args:
        directory: an empty or a new folder.
        plan: which rows of the corpus these are.
        form: what the numbers mean.
        rows: the planned rows, in corpus order, each with at least one token.
        positions: the T − 1 positions of each row, one row after the other.

    Raises:
        ValueError: rows and positions do not fit together, or a position is no distribution.
    """
    lengths_N = np.array([len(row.input_ids) for row in rows], np.int64)
    if len(rows) != plan.num_rows or (lengths_N < 1).any() or lengths_N.sum() - len(rows) != len(positions):
        raise ValueError(
            f"shard {plan.name} of {plan.num_rows} rows got {len(rows)} rows of {lengths_N.sum()} tokens and "
            f"{len(positions)} positions"
        )
    targets_N = np.array([row.loss_mask[1:].sum() for row in rows], np.int32)
    header = ShardHeader(
        **form.model_dump(include=set(LogitFormat.model_fields)),
        shard=plan.name,
        split=plan.split,
        first_row=plan.first_row,
        num_rows=len(rows),
        num_tokens=int(lengths_N.sum()),
        num_targets=int(targets_N.sum()),
    )
    arrays: dict[str, npt.NDArray[Any]] = {
        "offsets": np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths_N))),
        "num_targets": targets_N,
        "row_id": np.frombuffer(b"".join(bytes.fromhex(row.row_id) for row in rows), np.uint8).reshape(-1, 32),
        "input_ids": _concatenated((row.input_ids for row in rows), id_dtype(form.vocab_size)),
        "loss_mask": _concatenated((row.loss_mask for row in rows), np.uint8),
        **codec_of(form).encode(positions),
    }
    # Without write_empty_chunks a chunk of zeros is left out, and then looks like one that was lost.
    with zarr.config.set({"array.write_empty_chunks": True}):
        group = zarr.create_group(LocalStore(directory), attributes=header.model_dump(mode="json"))
        for name, values in arrays.items():
            _write(group, name, values)
    return header


def _concatenated(parts: Iterable[npt.NDArray[Any]], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.concatenate([np.asarray(part) for part in parts]).astype(dtype)


def _write(group: zarr.Group, name: str, values: npt.NDArray[Any]) -> None:
    """One file an array, however long: many chunks in one zarr shard keep the count of objects at the arrays'."""
    chunk = min(CHUNK_LENGTH, max(1, len(values)))
    width = tuple(max(1, size) for size in values.shape[1:])
    num_chunks = max(1, -(-len(values) // chunk))
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(chunk, *width),
        shards=(num_chunks * chunk, *width),
        # The sums make a flipped bit an error at the read instead of a wrong number in training.
        compressors=[BloscCodec(cname="zstd", clevel=5, shuffle="shuffle"), Crc32cCodec()],
        fill_value=0,
    )
    if values.size:
        array[:] = values
