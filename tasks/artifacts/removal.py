"""Takes garbage away, and not what a run that began meanwhile reuses.

A run writes its record before it looks at an artifact, and takes an artifact's lease before it makes one. So the lease
is held while a folder is emptied, and the runs are read again around the one deletion that matters, of the manifest:
where a run has come to name the folder the manifest is put back, and that run, which waits for the lease, finds it.
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


def remove(
    store: Store, garbage: Garbage, grace_seconds: float, claimed: Callable[[], Collection[str]] = lambda: ()
) -> bool:
    """Removes garbage, the manifest first: what has one is always whole.

    Args:
        claimed: the folders that runs which began since garbage was looked for name.

    Returns:
        False, and nothing is removed, where a run came back to the folder since it was looked at.
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
        if garbage.whole and not _disown(store, garbage.folder, claimed):
            return False
        main = f"{garbage.folder}/shards/{MAIN_SHARD}.json"
        for path in sorted(garbage.paths, key=lambda path: (path != main, "/shards/" not in path)):
            if lease.lost:
                return False
            if path != lease.path:
                store.delete(path)
    return True


def _disown(store: Store, folder: str, claimed: Callable[[], Collection[str]]) -> bool:
    """Removes a folder's manifest, if there is one; False, and it stands, where a run names the folder."""
    if folder in claimed():
        return False
    path = f"{folder}/manifest.json"
    try:
        manifest = store.get(path)
    except ObjectMissingError:
        # It has none: what a run finds it makes anew, after it has the lease.
        return True
    store.delete(path)
    if folder not in claimed():
        return True
    with suppress(ObjectExistsError):
        store.create(path, manifest)
    return False
