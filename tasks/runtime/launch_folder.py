"""A launch's folder on this host, and the removal of those whose launch was killed."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tasks.artifacts.disk import stands_at
from tasks.worker.input_cache import INPUTS
from tasks.worker.job import STOP_FILE
from tasks.worker.leash import grace_left

SCRATCH = Path(".medius/scratch")
"""The root of all launches of runs in this working folder."""
SPEC_FILE = "spec.json"
"""In a launch's folder: what its worker is to do."""
KEEPER = "tasks.worker.keeper"
"""Each launch has one process of this module, whose first argument is the launch's stop file."""


@contextmanager
def scratch_folder(root: Path, name: str, attempt: str) -> Iterator[Path]:
    """A new folder `<root>/<name>/<attempt>` that is gone after the block.

    Folders that killed launches left under the same name go too; those of living ones stay. A launch lives as long as
    it holds the lock on `<attempt>.lock` beside its folder, which the kernel lets go however the launch ends.
    """
    parent = root / name
    # Locked before the folder exists and unlocked after it is gone: a folder without a held lock is nobody's.
    with _held(parent / f"{attempt}.lock") as lock_file:
        _sweep(parent)
        folder = parent / attempt
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            # What cannot be removed is swept later, and must not hide what ended the block.
            with suppress(OSError):
                # Once more: a worker that outlived its launcher by a second may have put its folder back.
                _sweep(parent)
                lock_file.unlink(missing_ok=True)
                # Not empty while another launch is at work in it.
                parent.rmdir()


def is_saved_from(root: Path, name: str) -> bool:
    """Whether a worker of a run that is gone still saves its last checkpoint in `<root>/<name>`: see its keeper."""
    return any(
        grace_left(lock_file.with_suffix("") / STOP_FILE) > 0 and not _is_dead(lock_file)
        for lock_file in (root / name).glob("*.lock")
    )


def grace_of(command: Sequence[str]) -> float:
    """Seconds that a launch may take to save its state, by the command line of its keeper; 0 of any other process."""
    if len(command) < 4 or command[2] != KEEPER:
        return 0.0
    try:
        spec = json.loads(Path(command[3]).with_name(SPEC_FILE).read_bytes())
        return float(spec["runtime"]["stop_grace_seconds"])
    except (OSError, ValueError, KeyError):
        # It has ended meanwhile.
        return 0.0


def dead_launches(root: Path) -> list[Path]:
    """The lock files `<root>/<name>/<attempt>.lock` of launches that were killed."""
    # Those beside inputs are of fetches, which hold them for as long as that takes.
    found = [lock_file for lock_file in sorted(root.glob("*/*.lock")) if lock_file.parent.name != INPUTS]
    return [lock_file for lock_file in found if _is_dead(lock_file)]


def remove_dead(lock_file: Path) -> None:
    """Removes what a killed launch left under its name."""
    _sweep(lock_file.parent)
    with suppress(OSError):
        lock_file.parent.rmdir()


def _is_dead(lock_file: Path) -> bool:
    try:
        with lock_file.open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except (BlockingIOError, FileNotFoundError):
        return False


@contextmanager
def _held(lock_file: Path) -> Iterator[Path]:
    while True:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = lock_file.open("w")
        except FileNotFoundError:
            # Another launch has just removed the empty parent.
            continue
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # A sweep may have taken the file away between the two lines above.
            if stands_at(lock.fileno(), lock_file):
                yield lock_file
                return


def _sweep(parent: Path) -> None:
    """Removes every launch's folder and lock file of which nobody holds the lock."""
    if not parent.exists():
        return
    for name in {path.stem for path in parent.iterdir()}:
        lock_file = parent / f"{name}.lock"
        try:
            lock = lock_file.open("r+")
        except FileNotFoundError:
            shutil.rmtree(parent / name, ignore_errors=True)
            continue
        with lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(parent / name, ignore_errors=True)
            lock_file.unlink(missing_ok=True)
