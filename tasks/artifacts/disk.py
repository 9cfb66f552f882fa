"""A local disk's failures as sentences, and files that are there whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tasks.artifacts.errors import StoreError, TransientStoreError

TEMPORARY = ".tmp-"
"""Begins the name of every file that is not whole yet."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR})
_MAY_PASS = frozenset({errno.EIO, errno.ESTALE})
"""A disk, or the server of a mounted one, that does not answer now."""
_ABANDONED_SECONDS = 86_400.0


def disk_error(error: OSError, where: str, folder: str) -> StoreError:
    """What a user is told of a failed read or write of `where`, on the disk that holds `folder`."""
    why = error.strerror or str(error)
    if error.errno in FULL:
        return StoreError(
            f"the disk of {folder} is full; free some space there and run the same command again: what was committed "
            f"is kept"
        )
    if error.errno in REFUSED:
        return StoreError(f"cannot use {where}: {why}; change its permissions, or choose another place")
    if error.errno in _MAY_PASS:
        return TransientStoreError(f"{where}: {why}; its disk does not answer, try again")
    return StoreError(f"{where}: {why}; mend that and run the same command again")


@contextmanager
def disk_errors(where: str, folder: str) -> Iterator[None]:
    """Every OSError of the block becomes a StoreError that names `where`."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, where, folder) from error


@contextmanager
def receiving(target: Path) -> Iterator[Path]:
    """A path beside `target` to fetch it to: `target` is replaced where the block ends well, nothing stays where not.

    Raises:
        StoreError: the local disk failed.
    """
    temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        with disk_errors(str(target.parent), str(target.parent)):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.replace(target)
    finally:
        # It must not hide what ended the block.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Waits until no other process is in such a block for `folder`. What a dead one held, the kernel frees.

    Raises:
        StoreError: the local disk failed.
    """
    with disk_errors(str(folder.parent), str(folder.parent)):
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = folder.with_name(f"{folder.name}.lock").open("w")
    with file:
        with disk_errors(file.name, str(folder.parent)):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def stands_at(file: int, path: Path) -> bool:
    """Whether the open file, by its descriptor, is the one of that name, or another or none is by now."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def sweep(folder: Path) -> None:
    """Removes what fetches that were killed a day ago or longer left below `folder`."""
    now = time.time()
    for file in folder.rglob(f"{TEMPORARY}*"):
        # Two stages may sweep one folder.
        with suppress(OSError):
            if now - file.lstat().st_mtime > _ABANDONED_SECONDS:
                file.unlink()
