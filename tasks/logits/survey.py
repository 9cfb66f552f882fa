"""What a logit store holds, from a sample of its rows: captured mass, entries a position, and where the bytes go.

Memory depends on the sample alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import zarr
from numcodecs import blosc

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError, ObjectMissingError
from tasks.artifacts.manifest import Manifest
from tasks.logits.codec import DocumentCodec
from tasks.logits.prior import PRIOR_SHARD
from tasks.logits.reader import LogitReader
from tasks.logits.schema import LogitSchema, Split

SAMPLE_ROWS = 256
SAMPLE_POSITIONS = 200_000
"""About so many at most: 1.6 MB of numbers, some seconds of work."""
PERCENTILES = (1, 10, 50, 90, 99)
INDEX_BYTES = 16
"""Of the index at the end of an object, for each chunk."""


@dataclass(frozen=True)
class Survey:
    """Numbers of the sampled positions, and sizes of the whole store."""

    split: Split
    num_rows: int
    captured_P: npt.NDArray[np.float32]
    """Mass of a position's entries."""
    entries_P: npt.NDArray[np.int32]
    num_tokens: int
    """Of all splits."""
    num_bytes: int
    """Of all objects."""
    bytes_of_part: dict[str, float]
    """They add up to `num_bytes`. How the documents' bytes divide among their rows is measured on the sample."""

    @property
    def bytes_per_token(self) -> float:
        return self.num_bytes / max(self.num_tokens, 1)

    def percentiles(self) -> list[float]:
        """Of the captured mass, at PERCENTILES: so much of the positions captures less."""
        if not len(self.captured_P):
            return [math.nan] * len(PERCENTILES)
        return [float(value) for value in np.percentile(self.captured_P, PERCENTILES)]


def survey(artifact: Artifact, manifest: Manifest, reader: LogitReader, split: Split) -> Survey:
    """Reads rows spread evenly over a split's shards."""
    rows = reader.rows(split)
    split_tokens = sum(entry.num_tokens for entry in reader.schema.shards if entry.split == split)
    wanted = min(SAMPLE_ROWS, len(rows), 1 + SAMPLE_POSITIONS * len(rows) // max(split_tokens, 1))
    captured, entries = [np.empty(0, np.float32)], [np.empty(0, np.int32)]
    sizes = np.zeros(len(_row_names(reader.schema)), np.int64)
    spread = np.unique(np.linspace(0, len(rows) - 1, wanted).astype(np.int64)).tolist()
    for shard in reader.schema.shards:
        chosen = [index for index in spread if 0 <= index - shard.first_row < shard.num_rows]
        if shard.split != split or not chosen:
            continue
        documents = _documents(artifact, manifest, shard.name)
        for index in chosen:
            row = rows[index]
            captured.append(np.exp(row.topk_logprobs_PK.astype(np.float64)).sum(1).astype(np.float32))
            entries.append((row.topk_ids_PK >= 0).sum(1).astype(np.int32))
            read = partial(documents.__getitem__, index - shard.first_row)
            sizes += _compressed_sizes(np.asarray(artifact.store.reading(artifact.path(shard.name), read)))
    return Survey(
        split=split,
        num_rows=len(spread),
        captured_P=np.concatenate(captured),
        entries_P=np.concatenate(entries),
        num_tokens=sum(entry.num_tokens for entry in reader.schema.shards),
        num_bytes=sum(entry.size for entry in manifest.objects),
        bytes_of_part=_parts(manifest, reader.schema, sizes),
    )


def entry_error(reader: LogitReader, probability: float) -> float:
    """Largest |stored − true| in nats of an entry, by rounding and by scaling its position to a mass of 1."""
    codec = DocumentCodec(reader.schema, reader.prior())
    return float(codec.error_bound(np.log(np.array([probability], np.float32)))[0])


def find_row(reader: LogitReader, split: Split, row_id: str) -> int:
    """Index of the first row whose id starts with `row_id`, shard by shard.

    Raises:
        BadInputError: there is none, or several ids start so.
    """
    found: dict[str, int] = {}
    for entry in reader.schema.shards:
        if entry.split == split:
            shard = reader.shard(entry.name)
            for at in range(len(shard)):
                if shard.row_id(at).startswith(row_id):
                    found.setdefault(shard.row_id(at), entry.first_row + at)
    if not found:
        raise BadInputError(f"{reader.uri} has no row with id {row_id} in split {split}; try another --split")
    if len(found) > 1:
        raise BadInputError(f"{len(found)} rows of {reader.uri} have ids that start with {row_id}; give more digits")
    return next(iter(found.values()))


def _row_names(schema: LogitSchema) -> list[str]:
    """What a document's rows of bytes are called (tasks/logits/codec.py)."""
    values = {"warped": 0, "float16": 2, "float32": 4}[schema.values]
    return ["symbols (steps, high bytes)", "low bytes", "side"] + [f"value byte {place + 1}" for place in range(values)]


def _documents(artifact: Artifact, manifest: Manifest, shard: str) -> zarr.Array[Any]:
    root = manifest.object(f"{shard}/zarr.json")
    if root is None:
        raise ObjectMissingError(f"{artifact.uri} has no shard {shard}; run dump_logits again to make it")
    folder = artifact.path(root.path.removesuffix("/zarr.json"))

    def opened() -> zarr.Array[Any]:
        return cast("zarr.Array[Any]", zarr.open_group(artifact.store.zarr_store(folder), mode="r")["documents"])

    return artifact.store.reading(folder, opened)


def _compressed_sizes(bytes_RL: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Bytes that each row of a document takes: as in its chunk, where each is a block of its own."""
    return np.array(
        [len(blosc.compress(row_L.tobytes(), b"zstd", 1, blosc.NOSHUFFLE, len(row_L))) for row_L in bytes_RL], np.int64
    )


def _parts(manifest: Manifest, schema: LogitSchema, sizes: npt.NDArray[np.int64]) -> dict[str, float]:
    totals = {"documents": 0, "row ids, offsets": 0, "attributes": 0, "prior": 0}
    for entry in manifest.objects:
        if entry.name.startswith(f"{PRIOR_SHARD}/"):
            part = "prior"
        elif entry.name.endswith(".json"):
            part = "attributes"
        else:
            part = "documents" if "/documents/" in entry.name else "row ids, offsets"
        totals[part] += entry.size
    index = sum(math.ceil(entry.num_rows / schema.documents_per_chunk) for entry in schema.shards) * INDEX_BYTES
    documents = max(totals.pop("documents") - index, 0)
    shares = sizes / max(int(sizes.sum()), 1)
    named = {name: float(share * documents) for name, share in zip(_row_names(schema), shares, strict=True)}
    return {**named, "index": float(index), **{name: float(total) for name, total in totals.items()}}
