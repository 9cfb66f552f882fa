"""One artifact's folder in a store: what is there, what is missing, and the single write that finishes it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from tasks.artifacts.disk import alone, receiving, sweep
from tasks.artifacts.errors import CorruptArtifactError, ObjectExistsError, ObjectMissingError
from tasks.artifacts.fingerprint import file_sha256
from tasks.artifacts.frozen import Frozen
from tasks.artifacts.manifest import MAIN_SHARD, Manifest, ObjectRecord, ShardReceipt
from tasks.artifacts.redact import redact_record
from tasks.artifacts.store import Store

RecordT = TypeVar("RecordT", bound=Frozen)


def encode_record(record: Frozen) -> bytes:
    """A record as readable JSON, without credentials."""
    return json.dumps(redact_record(record), indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def decode_record(kind: type[RecordT], data: bytes, uri: str) -> RecordT:
    """A record as it was encoded.

    Raises:
        CorruptArtifactError: it cannot be read.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        how = "is torn" if first["type"] == "json_invalid" else "was written by another version of medius"
        raise CorruptArtifactError(
            f"{uri} cannot be read, as it {how}: {f'{where}: ' if where else ''}{first['msg']}; use the version that "
            f"wrote it, or move it away and run again"
        ) from error


class Artifact:
    """The folder `directory` of `store`, finished or not."""

    def __init__(self, store: Store, directory: str) -> None:
        self.store = store
        self.directory = directory

    @property
    def uri(self) -> str:
        return self.store.locate(self.directory)

    def path(self, name: str) -> str:
        """Store path of something below this artifact's folder."""
        return f"{self.directory}/{name}"

    def manifest(self) -> Manifest | None:
        """The manifest, or None while the artifact is unfinished. Raises CorruptArtifactError on a torn one."""
        try:
            data = self.store.get(self.path("manifest.json"))
        except ObjectMissingError:
            return None
        return decode_record(Manifest, data, f"{self.uri}/manifest.json")

    def receipts(self, shards: Iterable[str] | None = None) -> dict[str, ShardReceipt]:
        """The finished shards by name: all, or those named. Raises ObjectMissingError where one named has none."""
        if shards is None:
            paths = [entry.path for entry in self.store.list(self.path("shards"))]
        else:
            paths = [self.path(f"shards/{shard}.json") for shard in shards]
        receipts = (
            decode_record(ShardReceipt, data, self.store.locate(path))
            for path, data in zip(paths, self.store.get_all(paths), strict=True)
        )
        return {receipt.shard: receipt for receipt in receipts}

    def receipt(self, shard: str) -> ShardReceipt:
        """That of one finished shard. Raises ObjectMissingError."""
        path = self.path(f"shards/{shard}.json")
        return decode_record(ShardReceipt, self.store.get(path), self.store.locate(path))

    def add_shard(self, receipt: ShardReceipt) -> ShardReceipt:
        """Publishes a shard's receipt; returns the one that stands, which is another writer's if that was first."""
        try:
            self.store.create(self.path(f"shards/{receipt.shard}.json"), encode_record(receipt))
        except ObjectExistsError:
            return self.receipt(receipt.shard)
        return receipt

    def covered_objects(self, receipts: dict[str, ShardReceipt]) -> tuple[ObjectRecord, ...]:
        """All objects of the finished artifact: those of `main` and of the shards that it covers.

        Raises:
            CorruptArtifactError: a covered shard's receipt is gone.
        """
        main = receipts[MAIN_SHARD]
        objects = list(main.objects)
        for shard in main.covers:
            if shard not in receipts:
                raise CorruptArtifactError(
                    f"{self.uri}: shard {shard} has no receipt although shards/main.json covers it; delete "
                    f"shards/main.json and run again"
                )
            objects.extend(receipts[shard].objects)
        return tuple(sorted(objects, key=lambda entry: entry.name))

    def commit(self, manifest: Manifest) -> Manifest:
        """Writes the manifest create-only and returns the one that stands.

        After a lost response the write is repeated with the same bytes and `Store.create` recognises them; another
        run's manifest is a different object and wins.
        """
        try:
            self.store.create(self.path("manifest.json"), encode_record(manifest))
        except ObjectExistsError:
            there = self.manifest()
            if there is None:
                raise CorruptArtifactError(f"{self.uri}/manifest.json vanished while it was written") from None
            return there
        return manifest

    def fetch(self, manifest: Manifest, target: Path) -> Path:
        """Lays the artifact's objects under their logical names in `target`: links on local disk, else checked copies.

        Raises:
            CorruptArtifactError: an object is missing, or has another size or checksum than the manifest says.
        """
        sweep(target)
        missing = [entry for entry in manifest.objects if not _is_whole(target / entry.name, entry)]
        if missing and self.store.local_path(self.path(missing[0].path)) is None:
            # The ranks of a node and the stages beside them want the same model: one downloads it, the others wait.
            with alone(target):
                self._fetch(missing, target)
        else:
            self._fetch(missing, target)
        return target

    def _fetch(self, entries: Sequence[ObjectRecord], target: Path) -> None:
        for entry in entries:
            file = target / entry.name
            if _is_whole(file, entry):
                continue
            # Two stages may fetch one input at the same time: each works under a name of its own until it is whole.
            with receiving(file) as temporary:
                source = self.store.local_path(self.path(entry.path))
                if source is not None:
                    if not source.is_file() or source.stat().st_size != entry.size:
                        raise CorruptArtifactError(self._damage(entry, "is missing or has another size"))
                    temporary.symlink_to(source)
                    continue
                try:
                    self.store.download(self.path(entry.path), temporary)
                except ObjectMissingError as error:
                    raise CorruptArtifactError(self._damage(entry, "is missing")) from error
                if file_sha256(temporary) != entry.sha256:
                    raise CorruptArtifactError(self._damage(entry, "has another checksum than its manifest says"))

    def _damage(self, entry: ObjectRecord, what: str) -> str:
        return (
            f"{self.uri}/{entry.path} {what}; delete {self.uri}/manifest.json and this object's receipt, then run again"
        )


def _is_whole(file: Path, entry: ObjectRecord) -> bool:
    return file.exists() and file.stat().st_size == entry.size
