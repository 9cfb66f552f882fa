"""The store on a POSIX file system.

Create-only is `link(2)` of a finished temporary file: it fails if the name exists and never shows half a file.
Compare-and-swap holds an flock on a sibling file while it reads, compares and renames.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.artifacts.errors import ObjectChangedError, ObjectExistsError, ObjectMissingError, StoreError
from tasks.artifacts.fingerprint import sha256_hex
from tasks.artifacts.store import ObjectInfo, Store, Versioned, checked

if TYPE_CHECKING:
    import zarr.abc.store

_HIDDEN = ".tmp-"


class LocalStore(Store):
    """Objects as files below `root`, which is created on first write."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()
        self.uri = str(self.root)

    def _path(self, path: str) -> Path:
        return self.root / checked(path)

    @contextmanager
    def _temporary(self, target: Path) -> Iterator[Path]:
        temporary = target.parent / f"{_HIDDEN}{uuid.uuid4().hex}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise StoreError(
                    f"the disk of {self.uri} is full (while writing {target.name}); free some space and run the same "
                    f"command again: what was committed is kept"
                ) from error
            if error.errno in {errno.EACCES, errno.EROFS, errno.ENOTDIR}:
                raise StoreError(f"cannot write {target}: {error.strerror}; choose another store") from error
            raise
        finally:
            temporary.unlink(missing_ok=True)

    def _write(self, temporary: Path, data: bytes) -> None:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def get(self, path: str) -> bytes:
        try:
            return self._path(path).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ObjectMissingError(f"{self.locate(path)} does not exist") from error

    def read(self, path: str) -> Versioned:
        data = self.get(path)
        try:
            modified = self._path(path).stat().st_mtime
        except FileNotFoundError as error:
            raise ObjectMissingError(f"{self.locate(path)} does not exist") from error
        return Versioned(data, sha256_hex(data), modified)

    def put(self, path: str, data: bytes) -> None:
        target = self._path(path)
        with self._temporary(target) as temporary:
            self._write(temporary, data)
            temporary.replace(target)

    def create(self, path: str, data: bytes) -> str:
        target = self._path(path)
        with self._temporary(target) as temporary:
            self._write(temporary, data)
            while True:
                try:
                    os.link(temporary, target)
                except FileExistsError:
                    try:
                        there = self.get(path)
                    except ObjectMissingError:
                        # Its holder removed it in between: the name is free again.
                        continue
                    if there != data:
                        raise ObjectExistsError(f"{self.locate(path)} exists already") from None
                return sha256_hex(data)

    def replace(self, path: str, data: bytes, etag: str) -> str:
        target = self._path(path)
        lock = target.parent / f"{_HIDDEN}lock-{target.name}"
        with self._temporary(target) as temporary:
            self._write(temporary, data)
            with lock.open("w") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX)
                if not target.exists() or sha256_hex(target.read_bytes()) != etag:
                    raise ObjectChangedError(f"{self.locate(path)} was changed by another run")
                temporary.replace(target)
        return sha256_hex(data)

    def exists(self, path: str) -> bool:
        return self._path(path).is_file()

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        base = self._path(prefix)
        for file in sorted(base.rglob("*")):
            if file.name.startswith(_HIDDEN):
                continue
            try:
                stat = file.stat()
            except FileNotFoundError:
                continue
            if file.is_file():
                yield ObjectInfo(file.relative_to(self.root).as_posix(), stat.st_size, stat.st_mtime)

    def delete(self, path: str) -> None:
        self._path(path).unlink(missing_ok=True)

    def upload(self, source: Path, path: str) -> None:
        target = self._path(path)
        with self._temporary(target) as temporary:
            shutil.copyfile(source, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(target)

    def download(self, path: str, target: Path) -> None:
        source = self._path(path)
        if not source.is_file():
            raise ObjectMissingError(f"{self.locate(path)} does not exist")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{_HIDDEN}{uuid.uuid4().hex}")
        shutil.copyfile(source, temporary)
        temporary.replace(target)

    def now(self) -> float:
        # The file system's clock, which on a network mount is not this machine's.
        self.root.mkdir(parents=True, exist_ok=True)
        probe = self.root / f"{_HIDDEN}{uuid.uuid4().hex}"
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def local_path(self, path: str) -> Path:
        return self._path(path)

    def zarr_store(self, path: str) -> zarr.abc.store.Store:
        from zarr.storage import LocalStore as ZarrLocalStore

        return ZarrLocalStore(self._path(path), read_only=True)
