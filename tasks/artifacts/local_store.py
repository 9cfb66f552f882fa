"""The store on a POSIX file system.

Create-only is `link(2)` of a finished temporary file: it fails if the name exists and never shows half a file.
Compare-and-swap holds an flock on a sibling file while it reads, compares and renames.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tasks.artifacts.disk import TEMPORARY, disk_error, disk_errors, receiving
from tasks.artifacts.errors import BadInputError, ObjectChangedError, ObjectExistsError, ObjectMissingError
from tasks.artifacts.fingerprint import sha256_hex
from tasks.artifacts.store import ObjectInfo, Store, UnfinishedUpload, Versioned, checked

if TYPE_CHECKING:
    import zarr.abc.store

T = TypeVar("T")

_LOCK = f"{TEMPORARY}lock-"


class LocalStore(Store):
    """Objects as files below `root`, which is created on first write."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()
        self.uri = str(self.root)

    def _path(self, path: str) -> Path:
        place = self.root / checked(path)
        # A link that somebody laid in a shared folder; the root itself may be one.
        real = os.path.realpath(place)
        if real != str(place) and not Path(real).is_relative_to(self.root):
            raise BadInputError(
                f"{self.locate(path)} leads out of the store, to {real}; remove the link, or make its target the store"
            )
        return place

    @contextmanager
    def _temporary(self, target: Path) -> Iterator[Path]:
        temporary = target.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
        try:
            with disk_errors(str(target), self.uri):
                target.parent.mkdir(parents=True, exist_ok=True)
                yield temporary
        finally:
            # It must not hide what ended the block.
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _write(self, temporary: Path, data: bytes) -> None:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def _reading(self, path: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise ObjectMissingError(f"{self.locate(path)} does not exist") from error
        except OSError as error:
            raise disk_error(error, self.locate(path), self.uri) from error

    def get(self, path: str) -> bytes:
        with self._reading(path):
            return self._path(path).read_bytes()

    def read(self, path: str) -> Versioned:
        data = self.get(path)
        with self._reading(path):
            modified = self._path(path).stat().st_mtime
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
        lock = target.parent / f"{_LOCK}{target.name}"
        with self._temporary(target) as temporary:
            self._write(temporary, data)
            with lock.open("w") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX)
                if not target.exists() or sha256_hex(target.read_bytes()) != etag:
                    raise ObjectChangedError(f"{self.locate(path)} was changed by another run")
                temporary.replace(target)
        return sha256_hex(data)

    def exists(self, path: str) -> bool:
        with disk_errors(self.locate(path), self.uri):
            return self._path(path).is_file()

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        with disk_errors(self.locate(prefix), self.uri):
            found = sorted(self._path(prefix).rglob("*"))
        for file in found:
            if file.name.startswith(TEMPORARY):
                continue
            with disk_errors(str(file), self.uri), suppress(FileNotFoundError):
                status = file.stat()
                if stat.S_ISREG(status.st_mode):
                    yield ObjectInfo(file.relative_to(self.root).as_posix(), status.st_size, status.st_mtime)

    def children(self, folder: str) -> set[str]:
        try:
            with self._reading(folder):
                return {name for name in os.listdir(self._path(folder)) if not name.startswith(TEMPORARY)}
        except ObjectMissingError:
            return set()

    def delete(self, path: str) -> None:
        with disk_errors(self.locate(path), self.uri):
            self._path(path).unlink(missing_ok=True)

    def upload(self, source: Path, path: str) -> None:
        target = self._path(path)
        with self._temporary(target) as temporary:
            shutil.copyfile(source, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(target)

    def download(self, path: str, target: Path) -> None:
        if not self.exists(path):
            raise ObjectMissingError(f"{self.locate(path)} does not exist")
        with receiving(target) as temporary:
            shutil.copyfile(self._path(path), temporary)

    def now(self) -> float:
        # The file system's clock, which on a network mount is not this machine's.
        probe = self.root / f"{TEMPORARY}{uuid.uuid4().hex}"
        with disk_errors(str(probe), self.uri):
            self.root.mkdir(parents=True, exist_ok=True)
            probe.touch()
            try:
                return probe.stat().st_mtime
            finally:
                probe.unlink(missing_ok=True)

    def reading(self, path: str, action: Callable[[], T]) -> T:
        with self._reading(path):
            return action()

    def local_path(self, path: str) -> Path:
        return self._path(path)

    def unfinished_uploads(self) -> Iterator[UnfinishedUpload]:
        for file in sorted(self.root.rglob(f"{TEMPORARY}*")):
            # A lock guards its object's overwrites for as long as there is the object.
            if file.name.startswith(_LOCK) and file.with_name(file.name.removeprefix(_LOCK)).exists():
                continue
            with suppress(FileNotFoundError):
                yield UnfinishedUpload(file.relative_to(self.root).as_posix(), file.stat().st_mtime)

    def abort_upload(self, upload: UnfinishedUpload) -> None:
        self._path(upload.path).unlink(missing_ok=True)

    def zarr_store(self, path: str) -> zarr.abc.store.Store:
        from zarr.storage import LocalStore as ZarrLocalStore

        return ZarrLocalStore(self._path(path), read_only=True)
