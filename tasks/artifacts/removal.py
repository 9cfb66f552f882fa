"""Takes garbage away, and not what a run that began meanwhile reuses.

A run writes its record before it looks at an artifact, and takes the artifact's lease before it makes one, or, where
several runs make one together, a lease of each shard. So the lease is held while a folder is emptied, and the runs are
read again around the deletion of the manifest: where one has come to name the folder the manifest is put back, and that
run finds it. Of what is left then, receipts go before what they stand for, and before every few of them runs and leases
are looked at again: a run that begins on the rest has lost a few receipts at most, and makes their shards anew.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress

from tasks.artifacts.errors import LeaseHeldError, ObjectExistsError, ObjectMissingError
from tasks.artifacts.garbage import ARTIFACTS, Garbage, is_leased, is_young
from tasks.artifacts.lease import Lease
from tasks.artifacts.manifest import MAIN_SHARD
from tasks.artifacts.store import Store

_LEASE_SECONDS = 60.0
LOOK_EVERY = 20
"""Deletions between two looks at who has come to the folder; each look is two lists."""


def remove(
    store: Store, garbage: Garbage, grace_seconds: float, claimed: Callable[[], Collection[str]] = lambda: ()
) -> bool:
    """Removes garbage, the manifest first: what has one is always whole.

    Args:
        claimed: the folders that runs which began since garbage was looked for name.

    Returns:
        False where a run came back to the folder since it was looked at. What had gone by then is nothing that it
        cannot make again: no manifest, and of a receipt's objects none.
    """
    if not garbage.folder.startswith(f"{ARTIFACTS}/"):
        for path in garbage.paths:
            store.delete(path)
        return True
    lease = Lease(store, f"{garbage.folder}/lease.json", _LEASE_SECONDS)
    try:
        lease.acquire(0)
    except LeaseHeldError:
        return False
    with lease:
        entries = [entry for entry in store.list(garbage.folder) if entry.path != lease.path]
        if is_young(entries, grace_seconds, store.now()) or is_leased(store, garbage.folder, entries):
            return False
        manifest = f"{garbage.folder}/manifest.json"
        if garbage.whole and not _disown(store, garbage.folder, claimed):
            return False
        for number, path in enumerate(path for path in _in_order(garbage) if path not in {lease.path, manifest}):
            taken_up = garbage.whole and number % LOOK_EVERY == 0 and _is_taken_up(store, garbage.folder, claimed)
            if lease.lost or taken_up:
                return False
            store.delete(path)
    return True


def _in_order(garbage: Garbage) -> list[str]:
    """Receipts first, the one that covers the others before them, so that none stands for what is gone."""
    receipts = f"{garbage.folder}/shards/"
    main = f"{receipts}{MAIN_SHARD}.json"
    return sorted(garbage.paths, key=lambda path: (path != main, not path.startswith(receipts)))


def _is_taken_up(store: Store, folder: str, claimed: Callable[[], Collection[str]]) -> bool:
    """Whether a run names the folder by now, or works on one of its shards."""
    return folder in claimed() or is_leased(store, folder, store.list(f"{folder}/leases"))


def _disown(store: Store, folder: str, claimed: Callable[[], Collection[str]]) -> bool:
    """Removes a folder's manifest, if there is one; False, and it stands, where a run names the folder."""
    if folder in claimed():
        return False
    path = f"{folder}/manifest.json"
    try:
        manifest = store.get(path)
    except ObjectMissingError:
        return True
    store.delete(path)
    if folder not in claimed():
        return True
    with suppress(ObjectExistsError):
        store.create(path, manifest)
    return False
