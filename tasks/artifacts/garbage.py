"""What of a store nothing needs any more, and its removal.

Kept is what a root leads to (a profile, a ref, a retained run, and the inputs of any of these), what a lease holds, and
what is younger than a grace period. A kept artifact that is finished still has garbage: attempts that lost a race, and
checkpoints. One that is not finished keeps its receipts' objects and its checkpoints, from which a run goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import CorruptArtifactError, ObjectMissingError
from tasks.artifacts.lease import LeaseRecord, holder_is_dead
from tasks.artifacts.manifest import Manifest
from tasks.artifacts.store import ObjectInfo, Store

DAY = 86_400.0


@dataclass(frozen=True)
class Garbage:
    """Objects of one folder that nothing needs."""

    folder: str
    reason: str
    paths: tuple[str, ...]
    size: int
    """Bytes."""


def find_garbage(store: Store, roots: Iterable[str], grace_seconds: float) -> Iterator[Garbage]:
    """Looks at every artifact of the store, reading lists, manifests, receipts and leases only.

    Args:
        roots: folders of artifacts to keep, as `Step.directory`; their inputs are kept with them.
    """
    now = store.now()
    folders: dict[str, list[ObjectInfo]] = {}
    for entry in store.list("artifacts"):
        parts = entry.path.split("/")
        folders.setdefault("/".join(parts[:3]), []).append(entry)
    manifests = {
        folder: _manifest(store, folder)
        for folder, entries in folders.items()
        if f"{folder}/manifest.json" in {entry.path for entry in entries}
    }
    kept = _with_inputs(set(roots), manifests)
    for folder, entries in sorted(folders.items()):
        if max(entry.modified for entry in entries) + grace_seconds > now or is_leased(store, entries):
            continue
        manifest = manifests.get(folder)
        if folder not in kept:
            reason = (
                "no profile or retained run has it" if folder in manifests else "begun, and given up by its profile"
            )
            yield _garbage(folder, reason, entries)
        elif folder in manifests:
            # One that cannot be read is a case for people.
            if manifest is not None:
                needed = {f"{folder}/{entry.path}" for entry in manifest.objects}
                yield from _some(folder, "attempts and checkpoints behind a finished artifact", entries, needed, True)
        else:
            receipts = Artifact(store, folder).receipts().values()
            needed = {f"{folder}/{entry.path}" for receipt in receipts for entry in receipt.objects}
            yield from _some(folder, "attempts that ended before their receipt", entries, needed, False)
    probes = [entry for entry in store.list("probe") if entry.modified + grace_seconds <= now]
    if probes:
        yield _garbage("probe", "left by a proof of the store", probes)


def remove(store: Store, garbage: Garbage, grace_seconds: float) -> bool:
    """Removes garbage, the manifest first: what has one is always whole. False, and nothing is removed, where a run
    came back to the folder since it was looked at.
    """
    entries = list(store.list(garbage.folder))
    now = store.now()
    if any(entry.modified + grace_seconds > now for entry in entries) or is_leased(store, entries):
        return False
    for path in sorted(garbage.paths, key=lambda path: (not path.endswith("/manifest.json"), "/shards/" not in path)):
        store.delete(path)
    return True


def is_leased(store: Store, entries: Iterable[ObjectInfo]) -> bool:
    """Whether a living run holds a lease among these objects of one artifact."""
    for entry in entries:
        relative = entry.path.split("/", 3)[-1]
        if relative != "lease.json" and not relative.startswith("leases/"):
            continue
        try:
            there = store.read(entry.path)
            record = LeaseRecord.model_validate_json(there.data)
        except ObjectMissingError:
            continue
        except ValidationError:
            # Of a version that this one cannot read: somebody's.
            return True
        if there.modified + record.ttl_seconds > store.now() and not holder_is_dead(record):
            return True
    return False


def _manifest(store: Store, folder: str) -> Manifest | None:
    try:
        return Artifact(store, folder).manifest()
    except CorruptArtifactError:
        return None


def _with_inputs(roots: set[str], manifests: dict[str, Manifest | None]) -> set[str]:
    kept: set[str] = set()
    waiting = list(roots)
    while waiting:
        folder = waiting.pop()
        if folder in kept:
            continue
        kept.add(folder)
        manifest = manifests.get(folder)
        if manifest is not None:
            waiting += [record.directory for record in manifest.inputs.values()]
    return kept


def _some(
    folder: str, reason: str, entries: list[ObjectInfo], needed: set[str], checkpoints: bool
) -> Iterator[Garbage]:
    areas = (f"{folder}/data/", *([f"{folder}/checkpoints/"] if checkpoints else []))
    idle = [entry for entry in entries if entry.path.startswith(areas) and entry.path not in needed]
    if idle:
        yield _garbage(folder, reason, idle)


def _garbage(folder: str, reason: str, entries: list[ObjectInfo]) -> Garbage:
    return Garbage(folder, reason, tuple(entry.path for entry in entries), sum(entry.size for entry in entries))
