"""One interface for local disk and S3, down to what the artifact protocol needs: conditional writes.

Paths are relative to the store's root, with forward slashes, and cannot leave it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tasks.artifacts.errors import BadInputError

if TYPE_CHECKING:
    import zarr.abc.store


T = TypeVar("T")


@dataclass(frozen=True)
class ObjectInfo:
    """One listed object. `modified` is the server's clock, seconds since the epoch."""

    path: str
    size: int
    modified: float


@dataclass(frozen=True)
class Versioned:
    """An object's bytes with the tag that a conditional overwrite needs."""

    data: bytes
    etag: str
    modified: float


@dataclass(frozen=True)
class UnfinishedUpload:
    """Bytes that a writer sent and never made an object of. They take room, and no list of objects shows them."""

    path: str
    started: float
    """The server's clock, seconds since the epoch."""
    upload: str = ""
    """The server's name of it, where the path alone does not tell."""


class Store(ABC):
    """Objects under one root. Every method raises a `StoreError` that names the full URI."""

    uri: str

    @abstractmethod
    def get(self, path: str) -> bytes:
        """Raises ObjectMissingError."""

    def get_all(self, paths: Sequence[str]) -> Iterator[bytes]:
        """What each of many small objects holds, in their order. Raises ObjectMissingError."""
        return map(self.get, paths)

    @abstractmethod
    def read(self, path: str) -> Versioned:
        """Raises ObjectMissingError."""

    @abstractmethod
    def put(self, path: str, data: bytes) -> None:
        """Writes or overwrites, atomically."""

    @abstractmethod
    def create(self, path: str, data: bytes) -> str:
        """Writes only if nothing is there; returns the etag.

        A conflict with identical bytes counts as success: the bytes carry a write id, so they can only be there
        because this very write succeeded and its response was lost.

        Raises:
            ObjectExistsError: something else stands there.
        """

    @abstractmethod
    def replace(self, path: str, data: bytes, etag: str) -> str:
        """Overwrites the version `etag`; returns the new one. Raises ObjectChangedError."""

    @abstractmethod
    def exists(self, path: str) -> bool: ...

    @abstractmethod
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects below the folder `prefix`, sorted by path; nothing if there is none."""

    @abstractmethod
    def children(self, folder: str) -> set[str]:
        """Names of the objects and folders directly below `folder`, by one look at it; none if there is none."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Deleting what is not there is no error."""

    @abstractmethod
    def upload(self, source: Path, path: str) -> None: ...

    @abstractmethod
    def download(self, path: str, target: Path) -> None:
        """Writes `target` atomically. Raises ObjectMissingError."""

    @abstractmethod
    def now(self) -> float:
        """The server's clock, seconds since the epoch: the one that `modified` is told by."""

    @abstractmethod
    def local_path(self, path: str) -> Path | None:
        """The file behind an object, where the store is a local disk."""

    @abstractmethod
    def zarr_store(self, path: str) -> zarr.abc.store.Store:
        """A read-only zarr store over the folder `path`."""

    @abstractmethod
    def unfinished_uploads(self) -> Iterator[UnfinishedUpload]:
        """All of the store, those of living writers included."""

    @abstractmethod
    def abort_upload(self, upload: UnfinishedUpload) -> None:
        """Frees its room; one that is gone by now is no error."""

    def reading(self, path: str, action: Callable[[], T]) -> T:
        """What `action` returns, which reads below `path` through `zarr_store`; its outages become a `StoreError`."""
        return action()

    def locate(self, path: str) -> str:
        """The full URI of a path, for messages."""
        return f"{self.uri}/{path}"


_SEGMENT = re.compile(r"[A-Za-z0-9._=@+-]+")


def checked(path: str) -> str:
    """Returns `path` if it stays below the root; raises BadInputError otherwise."""
    for segment in path.split("/"):
        if segment in {"", ".", ".."} or not _SEGMENT.fullmatch(segment):
            raise BadInputError(
                f"the object name {path!r} has the part {segment!r}; use letters, digits and . _ = @ + - in names"
            )
    return path


def open_store(uri: str) -> Store:
    """Opens `s3://bucket/prefix` or a directory (with or without `file://`)."""
    if uri.startswith("s3://"):
        from tasks.artifacts.s3_store import S3Store

        return S3Store(uri)
    if re.match(r"\w+:", uri) and not uri.startswith("file://"):
        raise BadInputError(f"the store {uri!r} has an unknown scheme; use s3://bucket/prefix or a directory")
    from tasks.artifacts.local_store import LocalStore

    return LocalStore(Path(uri.removeprefix("file://")))
