"""What of a store nothing needs any more.

Kept is what a root leads to (a profile, a retained run, and the inputs of any of these), what a lease holds, and what
is younger than a grace period. A kept artifact that is finished still has garbage: attempts that lost a race,
checkpoints, and logs past their time. One that is not finished keeps its receipts' objects and its checkpoints, from
which a run goes on. removal.py takes garbage away.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import CorruptArtifactError, ObjectMissingError
from tasks.artifacts.lease import LeaseRecord, holder_is_dead
from tasks.artifacts.manifest import Manifest
from tasks.artifacts.store import ObjectInfo, Store

DAY = 86_400.0
ARTIFACTS = "artifacts"
_PROBES = "probe"
_LEAST_PARTS = 3
_KEYED = re.compile(r".+-[0-9a-f]{16}")
"""Every artifact's folder: artifacts/<stage>/<label>-<key16>."""
_ATTEMPT, _RANK = re.compile(r"(.+)-[0-9a-f]{8}"), re.compile(r"-r\d+$")
"""Every attempt's folder in data/: <shard>-<attempt8>, or <shard>-r<rank>-<attempt8>."""


@dataclass(frozen=True)
class Garbage:
    """Objects of one folder that nothing needs."""

    folder: str
    reason: str
    paths: tuple[str, ...]
    size: int
    """Bytes."""
    whole: bool = False
    """Whether all of the folder goes, which a run that names it may not see."""


def find_garbage(
    store: Store,
    roots: Iterable[str],
    grace_seconds: float,
    *,
    log_seconds: float | None = None,
    tell: Callable[[str], None] = lambda _sentence: None,
) -> Iterator[Garbage]:
    """Looks at every artifact of the store, reading lists, manifests, leases and a few receipts only.

    Args:
        roots: folders of artifacts to keep, as `Step.directory`; their inputs are kept with them.
        log_seconds: workers' logs of kept artifacts stay this long; None keeps them.
        tell: called with a sentence on each folder that is left alone because it is no artifact's.
    """
    now = store.now()
    folders = _by_folder(store.list(ARTIFACTS))
    manifests = {
        folder: _manifest(store, folder)
        for folder, entries in folders.items()
        if f"{folder}/manifest.json" in {entry.path for entry in entries}
    }
    kept = _with_inputs(set(roots), manifests)
    for folder, entries in sorted(folders.items()):
        if _KEYED.fullmatch(folder.rpartition("/")[2]) is None:
            tell(
                f"{store.locate(folder)} was left alone: its name does not end with 16 digits of a key, as an "
                f"artifact's does; move it out of {ARTIFACTS}/"
            )
            continue
        if is_young(entries, grace_seconds, now) or is_leased(store, folder, entries):
            continue
        manifest = manifests.get(folder)
        if folder not in kept:
            if any(other.startswith(f"{folder}/") for other in kept):
                tell(f"{store.locate(folder)} was left alone: an artifact that is kept stands in it")
                continue
            reason = (
                "no profile or retained run has it" if folder in manifests else "begun, and given up by its profile"
            )
            yield _garbage(folder, reason, entries, whole=True)
            continue
        if folder in manifests:
            # One that cannot be read is a case for people.
            if manifest is not None:
                needed = {f"{folder}/{entry.path}" for entry in manifest.objects}
                yield from _some(folder, "attempts and checkpoints behind a finished artifact", entries, needed, True)
        else:
            try:
                needed = _saved(Artifact(store, folder), entries)
            except CorruptArtifactError as error:
                tell(f"{store.locate(folder)} was left alone: {error}")
                continue
            yield from _some(folder, "attempts that ended before their receipt", entries, needed, False)
        if log_seconds is not None:
            logs = [entry for entry in entries if entry.path.startswith(f"{folder}/logs/")]
            if old := [entry for entry in logs if entry.modified + log_seconds <= now]:
                yield _garbage(folder, "logs past their time", old)
    probes = [entry for entry in store.list(_PROBES) if entry.modified + grace_seconds <= now]
    if probes:
        yield _garbage(_PROBES, "left by a proof of the store", probes)


def is_young(entries: Iterable[ObjectInfo], grace_seconds: float, now: float) -> bool:
    """Whether one of these objects was written within the grace period."""
    return any(entry.modified + grace_seconds > now for entry in entries)


def is_leased(store: Store, folder: str, entries: Iterable[ObjectInfo]) -> bool:
    """Whether a living run holds a lease among these objects of one artifact's folder."""
    for entry in entries:
        relative = entry.path.removeprefix(f"{folder}/")
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


def folder_of(path: str) -> str:
    """The folder of the artifact that an object below artifacts/ belongs to.

    The outermost one whose name ends with a key, not a number of parts of the path: a label may have come with a slash.
    Where there is none, the first three parts, whose name then says that they are no artifact's.
    """
    parts = path.split("/")
    for depth in range(_LEAST_PARTS, len(parts)):
        if _KEYED.fullmatch(parts[depth - 1]):
            return "/".join(parts[:depth])
    return "/".join(parts[:_LEAST_PARTS])


def _by_folder(entries: Iterable[ObjectInfo]) -> dict[str, list[ObjectInfo]]:
    folders: dict[str, list[ObjectInfo]] = {}
    for entry in entries:
        folders.setdefault(folder_of(entry.path), []).append(entry)
    return folders


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


def _saved(artifact: Artifact, entries: Iterable[ObjectInfo]) -> set[str]:
    """Paths of an unfinished artifact's objects that its receipts hold, of all that is in its folder.

    A receipt is read only where several attempts at its shard have left objects: a dump has thousands.
    """
    shards, attempts = set(), defaultdict[str, list[str]](list)
    for entry in entries:
        area, _, rest = entry.path.removeprefix(f"{artifact.directory}/").partition("/")
        if area == "shards":
            shards.add(rest.removesuffix(".json"))
        elif area == "data":
            attempts[rest.partition("/")[0]].append(entry.path)
    of_shard = defaultdict[str, list[str]](list)
    for attempt in attempts:
        if (match := _ATTEMPT.fullmatch(attempt)) is not None:
            # The name of a shard may itself end as a rank's does.
            for shard in {match[1], _RANK.sub("", match[1])} & shards:
                of_shard[shard].append(attempt)
    needed = {path for found in of_shard.values() if len(found) == 1 for path in attempts[found[0]]}
    unclear = sorted(shard for shard, found in of_shard.items() if len(found) > 1)
    for receipt in artifact.receipts(unclear).values():
        needed |= {artifact.path(entry.path) for entry in receipt.objects}
    return needed


def _some(
    folder: str, reason: str, entries: list[ObjectInfo], needed: set[str], checkpoints: bool
) -> Iterator[Garbage]:
    areas = (f"{folder}/data/", *([f"{folder}/checkpoints/"] if checkpoints else []))
    idle = [entry for entry in entries if entry.path.startswith(areas) and entry.path not in needed]
    if idle:
        yield _garbage(folder, reason, idle)


def _garbage(folder: str, reason: str, entries: list[ObjectInfo], *, whole: bool = False) -> Garbage:
    return Garbage(folder, reason, tuple(entry.path for entry in entries), sum(entry.size for entry in entries), whole)
