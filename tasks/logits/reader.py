"""Reads a logit store, from local disk or S3, row by row in any order.

Decoded rows are kept in a cache of bounded size, as are open shards: memory does not depend on the store's size.
Nothing that is missing is ever replaced by a default: zarr reads a lost object as zeros, so a shard's objects are
compared with the manifest before its first read.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import Store as ZarrStore

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError, CorruptArtifactError, ObjectMissingError
from tasks.artifacts.manifest import Manifest, ObjectRecord
from tasks.artifacts.store import Store
from tasks.logits.codec import Document, DocumentCodec
from tasks.logits.index_cache import IndexCachingStore
from tasks.logits.positions import Float32, Int32, UInt16
from tasks.logits.prior import PRIOR_SHARD, Prior, read_prior
from tasks.logits.schema import SCHEMA_FILE, LogitSchema, ShardEntry, ShardHeader, Split

DEFAULT_CACHE_BYTES = 256 * 2**20
MAX_OPEN_SHARDS = 4096
"""An open shard holds 52 bytes a document, so 2 million documents in 4,096 shards are 100 MB. A shuffled training asks
for lengths all over the store: with fewer it would open shards again and again."""


@dataclass(frozen=True)
class LogitRow:
    """One document of T tokens with its P = T − 1 predictions; see `tasks.logits.positions` for the meanings."""

    row_id: str
    input_ids: Int32
    loss_mask: npt.NDArray[np.uint8]
    topk_ids_PK: Int32
    topk_logprobs_PK: Float32
    tail_logprob_P: Float32
    gold_logprob_P: Float32
    tempered_lse_PM: Float32
    tempered_tail_PM: Float32
    counts_PK: UInt16

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))


class RowCache:
    """Least-recently-used rows up to a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rows: OrderedDict[tuple[str, int], LogitRow] = OrderedDict()
        self._total = 0

    def get(self, key: tuple[str, int]) -> LogitRow | None:
        """The row, if it is there."""
        if key in self._rows:
            self._rows.move_to_end(key)
        return self._rows.get(key)

    def put(self, key: tuple[str, int], row: LogitRow) -> None:
        """Keeps a row, and drops what was not used for longest."""
        if key in self._rows:
            return
        self._rows[key] = row
        self._total += row.num_bytes
        while self._total > self._max_bytes and len(self._rows) > 1:
            self._total -= self._rows.popitem(last=False)[1].num_bytes


class ShardReader:
    """One shard's zarr group. Safe to use from several threads."""

    def __init__(self, store: ZarrStore, prior: Prior) -> None:
        """
        Raises:
            CorruptArtifactError: the shard was written with another prior.
        """
        group = zarr.open_group(IndexCachingStore(store), mode="r")
        self.header = ShardHeader.model_validate(dict(group.attrs))
        if self.header.prior_digest != prior.digest:
            raise CorruptArtifactError(
                f"shard {self.header.shard} was written with the prior {self.header.prior_digest[:16]}, the store has "
                f"{prior.digest[:16]}"
            )
        self.codec = DocumentCodec(self.header, prior)
        self._documents = cast("zarr.Array[Any]", group["documents"])
        self.offsets = np.asarray(cast("zarr.Array[Any]", group["offsets"])[:], np.int64)
        self.num_targets = np.asarray(cast("zarr.Array[Any]", group["num_targets"])[:], np.int64)
        self._row_ids_N32 = np.asarray(cast("zarr.Array[Any]", group["row_id"])[:])

    def __len__(self) -> int:
        return len(self._row_ids_N32)

    def row_id(self, index: int) -> str:
        """Hex sha256 of a row's token ids."""
        return bytes(self._row_ids_N32[index]).hex()

    def num_tokens(self, index: int) -> int:
        """T of a row."""
        return int(self.offsets[index + 1] - self.offsets[index])

    def rows(self, first: int, last: int) -> list[LogitRow]:
        """Rows first … last − 1, read at once."""
        bytes_NRL = np.asarray(self._documents[first:last])
        return [
            self._row(first + place, self.codec.decode(bytes_RL, self.num_tokens(first + place)))
            for place, bytes_RL in enumerate(bytes_NRL)
        ]

    def row(self, index: int) -> LogitRow:
        """The shard's row `index`."""
        return self.rows(index, index + 1)[0]

    def chunk_of(self, index: int) -> tuple[int, int]:
        """First and last + 1 of the rows that are compressed together with this one."""
        size = int(self._documents.chunks[0])
        first = index // size * size
        return first, min(first + size, len(self))

    def _row(self, index: int, document: Document) -> LogitRow:
        arrays = document.positions.frozen().arrays()
        return LogitRow(self.row_id(index), document.input_ids_T, document.loss_mask_T, *arrays)


class LogitReader:
    """A finished logit store. Safe to use from several threads; rows that it returns cannot be written to."""

    def __init__(
        self, store: Store, directory: str, manifest: Manifest, cache_bytes: int = DEFAULT_CACHE_BYTES
    ) -> None:
        self._artifact = Artifact(store, directory)
        self._objects = {entry.name: entry for entry in manifest.objects}
        if SCHEMA_FILE not in self._objects:
            raise BadInputError(f"{self._artifact.uri} has no {SCHEMA_FILE}, so it is no logit store")
        self.schema = LogitSchema.model_validate_json(store.get(self._artifact.path(self._objects[SCHEMA_FILE].path)))
        self._cache = RowCache(cache_bytes)
        self._shards: OrderedDict[str, ShardReader] = OrderedDict()
        self._prior: Prior | None = None
        self._lock = threading.Lock()

    @property
    def uri(self) -> str:
        """Where the store is."""
        return self._artifact.uri

    def require(self, tokenizer_digest: str, vocab_size: int) -> None:
        """Refuses a store whose ids mean something else than the caller's.

        Raises:
            BadInputError: the tokenizer's digest or the vocabulary's size (largest id + 1) is another one.
        """
        if self.schema.tokenizer_digest != tokenizer_digest:
            raise BadInputError(
                f"the logits in {self.uri} were dumped with tokenizer {self.schema.tokenizer_digest[:16]}, this model "
                f"has {tokenizer_digest[:16]}; give the model the teacher's vocabulary first (stage surgeon) or dump "
                f"again"
            )
        if self.schema.vocab_size != vocab_size:
            raise BadInputError(
                f"the logits in {self.uri} are over {self.schema.vocab_size} tokens, this model's tokenizer has "
                f"{vocab_size}; use the teacher's own tokenizer"
            )

    def rows(self, split: Split) -> RowSet:
        """The rows of a split in corpus order.

        Raises:
            BadInputError: the split was not dumped.
        """
        if split not in self.schema.num_rows:
            raise BadInputError(
                f"the logits in {self.uri} have no split {split!r}, only {sorted(self.schema.num_rows)}; add it to "
                f"recipe.splits of dump_logits"
            )
        return RowSet(self, split)

    def prior(self) -> Prior:
        """The order in which the store numbers its tokens.

        Raises:
            ObjectMissingError: it is not in the store.
            CorruptArtifactError: it is damaged, or another one than the schema names.
        """
        if self._prior is None:
            with self._damage_named(PRIOR_SHARD):
                store = self._zarr_store(PRIOR_SHARD)
                self._prior = self._artifact.store.reading(
                    self._artifact.path(PRIOR_SHARD), lambda: read_prior(store, f"{self.uri}: the {PRIOR_SHARD}")
                )
            if self._prior.digest != self.schema.prior_digest:
                raise CorruptArtifactError(
                    f"{self.uri}: the {PRIOR_SHARD} is {self._prior.digest[:16]}, {SCHEMA_FILE} says "
                    f"{self.schema.prior_digest[:16]}; run dump_logits again into an empty folder"
                )
        return self._prior

    def shard(self, name: str) -> ShardReader:
        """An open shard.

        Raises:
            ObjectMissingError: it is not in the store, or one of its objects is gone.
            CorruptArtifactError: one of its objects has another size than the manifest says.
        """
        with self._lock:
            if name not in self._shards:
                prior = self.prior()
                with self._damage_named(name):
                    store = self._zarr_store(name)
                    reader = self._artifact.store.reading(
                        self._artifact.path(f"shard {name}"), lambda: ShardReader(store, prior)
                    )
                if reader.header.shard != name:
                    raise CorruptArtifactError(
                        f"{self.uri}: the objects of shard {name} say that they are shard {reader.header.shard}"
                    )
                self._shards[name] = reader
                if len(self._shards) > MAX_OPEN_SHARDS:
                    self._shards.popitem(last=False)
            self._shards.move_to_end(name)
            return self._shards[name]

    def read(self, shard: ShardReader, first: int, last: int) -> list[LogitRow]:
        """Rows of an open shard. What is compressed together with them is read, and cached, at the same time."""
        name = shard.header.shard
        with self._lock:
            found = [self._cache.get((name, index)) for index in range(first, last)]
        if None not in found:
            return cast("list[LogitRow]", found)
        with self._damage_named(name):
            start, stop = shard.chunk_of(first)[0], shard.chunk_of(last - 1)[1]
            rows = self._artifact.store.reading(self._artifact.path(f"shard {name}"), lambda: shard.rows(start, stop))
        with self._lock:
            for place, row in enumerate(rows):
                self._cache.put((name, start + place), row)
        return rows[first - start : last - start]

    @contextmanager
    def _damage_named(self, shard: str) -> Iterator[None]:
        """Checksums and decompression fail with a ValueError or a RuntimeError that does not say where."""
        try:
            yield
        except (ValueError, RuntimeError) as error:
            raise CorruptArtifactError(
                f"{self.uri}: shard {shard} is damaged ({error}); delete the store's manifest.json and this shard's "
                f"receipt, then run dump_logits again"
            ) from error

    def _zarr_store(self, name: str) -> ZarrStore:
        """The folder of a shard whose objects are all there."""
        objects = [entry for entry in self._objects.values() if entry.name.startswith(f"{name}/")]
        root = next((entry for entry in objects if entry.name == f"{name}/zarr.json"), None)
        if root is None:
            raise ObjectMissingError(f"{self.uri} has no shard {name}; run dump_logits again to make it")
        folder = root.path.removesuffix("/zarr.json")
        self._compare(name, folder, objects)
        return self._artifact.store.zarr_store(self._artifact.path(folder))

    def _compare(self, name: str, folder: str, objects: list[ObjectRecord]) -> None:
        sizes = {entry.path: entry.size for entry in self._artifact.store.list(self._artifact.path(folder))}
        for entry in objects:
            size = sizes.get(self._artifact.path(entry.path))
            if size is None:
                raise ObjectMissingError(
                    f'{self.uri}/{entry.path} of shard {name} is missing; run "medius verify" to see what else is'
                )
            if size != entry.size:
                raise CorruptArtifactError(
                    f"{self.uri}/{entry.path} of shard {name} has {size} bytes, the manifest says {entry.size}"
                )


class RowSet:
    """The rows of one split, by index in corpus order."""

    def __init__(self, reader: LogitReader, split: Split) -> None:
        self.split = split
        self._reader = reader
        self._shards: list[ShardEntry] = [entry for entry in reader.schema.shards if entry.split == split]
        self._starts = [entry.first_row for entry in self._shards]

    def __len__(self) -> int:
        return self._reader.schema.num_rows[self.split]

    def __getitem__(self, index: int) -> LogitRow:
        shard, place = self._at(index)
        return self._reader.read(shard, place, place + 1)[0]

    def many(self, indices: Sequence[int]) -> list[LogitRow]:
        """Rows in the given order. Neighbours that are asked for one after the other are read at once."""
        rows: list[LogitRow] = []
        while len(rows) < len(indices):
            start = len(rows)
            shard, first = self._at(indices[start])
            length = 1
            while (
                start + length < len(indices)
                and indices[start + length] == indices[start] + length
                and first + length < len(shard)
            ):
                length += 1
            rows += self._reader.read(shard, first, first + length)
        return rows

    def num_tokens(self, index: int) -> int:
        """T of a row, without reading its distributions."""
        shard, place = self._at(index)
        return shard.num_tokens(place)

    def num_targets(self, index: int) -> int:
        """Positions of a row that count in the loss."""
        shard, place = self._at(index)
        return int(shard.num_targets[place])

    def row_id(self, index: int) -> str:
        """Hex sha256 of a row's token ids."""
        shard, place = self._at(index)
        return shard.row_id(place)

    def _at(self, index: int) -> tuple[ShardReader, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of split {self.split}, which has {len(self)} rows")
        place = bisect_right(self._starts, index) - 1
        entry = self._shards[place] if place >= 0 else None
        if entry is None or index >= entry.first_row + entry.num_rows:
            raise ObjectMissingError(f"{self._reader.uri} has no shard with row {index} of split {self.split}")
        return self._reader.shard(entry.name), index - entry.first_row
