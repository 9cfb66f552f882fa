"""Inputs as this machine keeps them once they were fetched from a store, and those that nothing reads any more.

<cache>/<key16>-<digest16>/       an input's files
<cache>/<key16>-<digest16>.used   locked by every process that reads them; its time is when the last one began to
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from tasks.artifacts.disk import disk_errors, stands_at
from tasks.artifacts.store import checked

INPUT_CACHE = "MEDIUS_INPUT_CACHE"
"""Names a folder for inputs on each node's own disk, where the scratch folder is one that nodes share."""
INPUTS = "inputs"
"""That folder otherwise, beside the launches of a scratch folder."""
_INPUT = re.compile(r"([0-9a-f]{16})-[0-9a-f]{16}")
_held: dict[Path, int] = {}
"""File descriptors of the locks that this process has until it ends."""


def input_folder(cache: str, key: str, digest: str) -> Path:
    """Where this machine keeps the files of an input: below `cache`, unless the environment names another place."""
    return Path(os.environ.get(INPUT_CACHE) or cache) / checked(f"{key[:16]}-{digest[:16]}")


def keep_in_use(folder: Path) -> None:
    """Keeps the folder of an input, which need not exist yet, from `remove_idle` until this process ends.

    Raises:
        StoreError: the local disk failed.
    """
    lock_file = _used(folder)
    with disk_errors(str(lock_file), str(folder.parent)):
        folder.parent.mkdir(parents=True, exist_ok=True)
        while folder not in _held:
            lock = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(lock, fcntl.LOCK_SH)
            # A removal may have taken the file away between the two lines above.
            if stands_at(lock, lock_file):
                _held[folder] = lock
            else:
                os.close(lock)
        os.utime(lock_file)


def idle_inputs(cache: Path, keys: Collection[str], grace_seconds: float) -> Iterator[Path]:
    """Folders of inputs that nobody reads, nor has begun to read within the grace period.

    Args:
        cache: the folder that holds them.
        keys: the first 16 digits of those that are kept all the same.
    """
    for folder in sorted(cache.glob("*-*")):
        match = _INPUT.fullmatch(folder.name)
        if match is not None and match[1] not in keys and folder.is_dir() and _is_idle(folder, grace_seconds):
            yield folder


def remove_idle(folder: Path, grace_seconds: float) -> bool:
    """Removes the folder of an input; False, and it stays, where a process has come to read it."""
    if not _is_idle(folder, grace_seconds):
        return False
    lock_file = _used(folder)
    with lock_file.open("a") as lock:
        # Whoever waits for this lock finds that its file is gone, and fetches anew under another.
        if not _locked_alone(lock.fileno()) or not stands_at(lock.fileno(), lock_file):
            return False
        shutil.rmtree(folder, ignore_errors=True)
        # Of the fetches, each of which is by a process that holds the lock above.
        folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)
        lock_file.unlink(missing_ok=True)
    return not folder.exists()


def _used(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.used")


def _is_idle(folder: Path, grace_seconds: float) -> bool:
    try:
        with _used(folder).open("r+") as lock:
            began, free = os.fstat(lock.fileno()).st_mtime, _locked_alone(lock.fileno())
    except FileNotFoundError:
        if not folder.exists():
            return False
        # Fetched by a version that wrote none.
        began, free = folder.stat().st_mtime, True
    return free and began + grace_seconds <= time.time()


def _locked_alone(lock: int) -> bool:
    """Locks an open file if no other process has."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
