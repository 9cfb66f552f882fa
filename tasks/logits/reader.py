"""Reads a logit store, from local disk or S3, row by row in any order.

Decoded chunks are kept in a cache of bounded size, so that shuffled access within a few shards decodes each chunk about
once. Nothing that is missing is ever replaced by a default: zarr reads a lost object as zeros, so a shard's objects are
compared with the manifest before its first read.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
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
from tasks.logits.codec import Float32, Int32, Planes, Positions, codec_of
from tasks.logits.schema import SCHEMA_FILE, LogitSchema, ShardEntry, ShardHeader, Split

PLANES = ("topk_ids", "topk_logprobs", "tail_logprob", "gold_logprob", "tempered_lse", "tempered_tail")
DEFAULT_CACHE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class LogitRow:
    """One document of T tokens with its P = T − 1 predictions; see `tasks.logits.codec.Positions` for the meanings."""

    row_id: str
    input_ids: Int32
    loss_mask: npt.NDArray[np.uint8]
    topk_ids_PK: Int32
    topk_logprobs_PK: Float32
    tail_logprob_P: Float32
    gold_logprob_P: Float32
    tempered_lse_PM: Float32
    tempered_tail_PM: Float32


class BlockCache:
    """Least-recently-used blocks up to a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._blocks: OrderedDict[tuple[str, str, int], Any] = OrderedDict()
        self._num_bytes: dict[tuple[str, str, int], int] = {}
        self._total = 0

    def get(self, key: tuple[str, str, int]) -> Any:
        if key in self._blocks:
            self._blocks.move_to_end(key)
        return self._blocks.get(key)

    def put(self, key: tuple[str, str, int], block: Any, num_bytes: int) -> None:
        self._blocks[key] = block
        self._num_bytes[key] = num_bytes
        self._total += num_bytes
        while self._total > self._max_bytes and len(self._blocks) > 1:
            oldest, _ = self._blocks.popitem(last=False)
            self._total -= self._num_bytes.pop(oldest)


class ShardReader:
    """One shard's zarr group."""

    def __init__(self, store: ZarrStore, cache: BlockCache) -> None:
        group = zarr.open_group(store, mode="r")
        self.header = ShardHeader.model_validate(dict(group.attrs))
        self._arrays = {name: cast("zarr.Array[Any]", group[name]) for name in ("input_ids", "loss_mask", *PLANES)}
        self._codec = codec_of(self.header)
        self._cache = cache
        self.offsets = np.asarray(cast("zarr.Array[Any]", group["offsets"])[:], np.int64)
        self.num_targets = np.asarray(cast("zarr.Array[Any]", group["num_targets"])[:], np.int64)
        ids_N32 = np.asarray(cast("zarr.Array[Any]", group["row_id"])[:])
        self.row_ids = [bytes(row_id).hex() for row_id in ids_N32]

    def row(self, index: int) -> LogitRow:
        """The shard's row `index`."""
        start, stop = int(self.offsets[index]), int(self.offsets[index + 1])
        # A row has one position less than tokens, so its positions start `index` earlier than its tokens.
        positions = self.positions(start - index, stop - index - 1)
        return LogitRow(
            self.row_ids[index],
            self._tokens("input_ids", start, stop).astype(np.int32),
            self._tokens("loss_mask", start, stop),
            *positions.arrays(),
        )

    def positions(self, start: int, stop: int) -> Positions:
        """Decoded positions start … stop − 1 of the shard."""
        length = self._arrays["tail_logprob"].chunks[0]
        if start == stop:
            return self._codec.decode({name: np.asarray(self._arrays[name][0:0]) for name in PLANES})
        blocks = range(start // length, (stop - 1) // length + 1)
        parts = [
            self._block(block, length).cut(max(0, start - block * length), min(length, stop - block * length))
            for block in blocks
        ]
        return Positions.joined(parts)

    def _block(self, block: int, length: int) -> Positions:
        key = (self.header.shard, "positions", block)
        found: Positions | None = self._cache.get(key)
        if found is None:
            where = slice(block * length, (block + 1) * length)
            planes: Planes = {name: np.asarray(self._arrays[name][where]) for name in PLANES}
            found = self._codec.decode(planes)
            for array in found.arrays():
                array.flags.writeable = False
            self._cache.put(key, found, found.num_bytes)
        return found

    def _tokens(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        length = self._arrays[name].chunks[0]
        parts = []
        for block in range(start // length, (stop - 1) // length + 1):
            key = (self.header.shard, name, block)
            values = self._cache.get(key)
            if values is None:
                values = np.asarray(self._arrays[name][block * length : (block + 1) * length])
                self._cache.put(key, values, values.nbytes)
            parts.append(values[max(0, start - block * length) : stop - block * length])
        return np.concatenate(parts)


class LogitReader:
    """A finished logit store.

    Distributions that it returns may be views of its cache, and cannot be written to.
    Safe to use from several threads, one read at a time.
    """

    def __init__(
        self, store: Store, directory: str, manifest: Manifest, cache_bytes: int = DEFAULT_CACHE_BYTES
    ) -> None:
        self._artifact = Artifact(store, directory)
        self._objects = {entry.name: entry for entry in manifest.objects}
        if SCHEMA_FILE not in self._objects:
            raise BadInputError(f"{self._artifact.uri} has no {SCHEMA_FILE}, so it is no logit store")
        self.schema = LogitSchema.model_validate_json(store.get(self._artifact.path(self._objects[SCHEMA_FILE].path)))
        self._cache = BlockCache(cache_bytes)
        self._shards: dict[str, ShardReader] = {}
        self._lock = threading.Lock()

    @property
    def uri(self) -> str:
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

    def shard(self, name: str) -> ShardReader:
        """An open shard.

        Raises:
            ObjectMissingError: it is not in the store, or one of its objects is gone.
            CorruptArtifactError: one of its objects has another size than the manifest says.
        """
        with self._lock:
            if name not in self._shards:
                with self._damage_named(name):
                    self._shards[name] = self._open(name)
            return self._shards[name]

    def read(self, shard: ShardReader, index: int) -> LogitRow:
        """A row of an open shard."""
        with self._lock, self._damage_named(shard.header.shard):
            return shard.row(index)

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

    def _open(self, name: str) -> ShardReader:
        objects = [entry for entry in self._objects.values() if entry.name.startswith(f"{name}/")]
        root = next((entry for entry in objects if entry.name == f"{name}/zarr.json"), None)
        if root is None:
            raise ObjectMissingError(f"{self.uri} has no shard {name}; run dump_logits again to make it")
        folder = root.path.removesuffix("/zarr.json")
        self._compare(name, folder, objects)
        reader = ShardReader(self._artifact.store.zarr_store(self._artifact.path(folder)), self._cache)
        if reader.header.shard != name:
            raise CorruptArtifactError(f"{self.uri}/{folder} says that it is shard {reader.header.shard}, not {name}")
        return reader

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
        self._index: dict[str, int] | None = None

    def __len__(self) -> int:
        return self._reader.schema.num_rows[self.split]

    def __getitem__(self, index: int) -> LogitRow:
        shard, place = self._at(index)
        return self._reader.read(shard, place)

    def num_tokens(self, index: int) -> int:
        """T of a row, without reading its distributions."""
        shard, place = self._at(index)
        return int(shard.offsets[place + 1] - shard.offsets[place])

    def num_targets(self, index: int) -> int:
        """Positions of a row that count in the loss."""
        shard, place = self._at(index)
        return int(shard.num_targets[place])

    def row_id(self, index: int) -> str:
        """Hex sha256 of a row's token ids."""
        shard, place = self._at(index)
        return shard.row_ids[place]

    def index_of(self, row_id: str) -> int:
        """Where the row with this id is.

        Raises:
            ObjectMissingError: it is not in this split.
        """
        if self._index is None:
            self._index = {self.row_id(index): index for index in range(len(self))}
        if row_id not in self._index:
            raise ObjectMissingError(f"{self._reader.uri} has no logits for row {row_id} in split {self.split}")
        return self._index[row_id]

    def _at(self, index: int) -> tuple[ShardReader, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of split {self.split}, which has {len(self)} rows")
        place = bisect_right(self._starts, index) - 1
        entry = self._shards[place] if place >= 0 else None
        if entry is None or index >= entry.first_row + entry.num_rows:
            raise ObjectMissingError(f"{self._reader.uri} has no shard with row {index} of split {self.split}")
        return self._reader.shard(entry.name), index - entry.first_row
