"""Which shard this worker takes next, when others take shards of the same plan.

A shard is free if it has no receipt and nobody holds its lease (`<artifact>/leases/<shard>.json`): workers of one
launch, of other launches and of other hosts are all alike to each other. Leases save GPU hours and receipts give
correctness: a receipt is written before its lease is released and looked for after a lease is taken, so a finished
shard is not made again; and if two ever make the same one, the first receipt counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import PurePosixPath

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import LeaseHeldError, StoreError
from tasks.artifacts.fingerprint import sha256_hex
from tasks.artifacts.lease import Lease


class Claim:
    """A shard that is this worker's until it is released or its lease is lost."""

    def __init__(self, claims: ShardClaims, name: str, lease: Lease) -> None:
        self.name = name
        self._claims = claims
        self._lease = lease
        self._held = ExitStack()
        self._held.enter_context(lease)

    @property
    def lost(self) -> bool:
        """Whether another worker has taken the shard over, after this one was too slow to renew its lease."""
        return self._lease.lost

    def release(self) -> None:
        """Frees the shard for others, if it has no receipt. Safe from any thread, and twice."""
        self._held.close()
        self._claims.released(self.name)


class ShardClaims:
    """The plan's shards as this worker sees them."""

    def __init__(self, artifact: Artifact, names: Sequence[str], start: int, ttl_seconds: float) -> None:
        """`start` is the place of the plan at which this worker begins to look; at its end it goes on at the front."""
        self._artifact = artifact
        self._names = [*names[start:], *names[:start]]
        self._ttl_seconds = ttl_seconds
        self._mine: set[str] = set()
        self.finished: frozenset[str] = frozenset()
        """Those with a receipt, as of the last look."""
        self.look()

    def look(self) -> bool:
        """Lists the receipts; returns whether all shards have one."""
        found = {PurePosixPath(entry.path).stem for entry in self._artifact.store.list(self._artifact.path("shards"))}
        self.finished = frozenset(found.intersection(self._names))
        return self.all_finished

    def take(self) -> Claim | None:
        """The first free shard; None if there is none now."""
        self.look()
        for name in self._names:
            if name not in self.finished and name not in self._mine and (claim := self._taken(name)) is not None:
                return claim
        return None

    @property
    def all_finished(self) -> bool:
        """Whether all shards had a receipt at the last look."""
        return len(self.finished) == len(self._names)

    @property
    def only_mine_left(self) -> bool:
        """Whether all shards without a receipt are in this worker's own hands."""
        return self._mine.issuperset(set(self._names) - self.finished)

    def sweep(self) -> None:
        """Removes the leases of finished shards: of workers that were killed between a receipt and its release."""
        for entry in list(self._artifact.store.list(self._artifact.path("leases"))):
            if PurePosixPath(entry.path).stem in self.finished:
                with suppress(StoreError):
                    self._artifact.store.delete(entry.path)

    def _taken(self, name: str) -> Claim | None:
        lease = Lease(self._artifact.store, self._artifact.path(f"leases/{name}.json"), self._ttl_seconds)
        try:
            lease.acquire(wait_seconds=0)
        except LeaseHeldError:
            return None
        self._mine.add(name)
        claim = Claim(self, name, lease)
        # Another may have finished it and let it go since the receipts were listed.
        if self._artifact.store.exists(self._artifact.path(f"shards/{name}.json")):
            claim.release()
            return None
        return claim

    def released(self, name: str) -> None:
        """Told by a claim."""
        self._mine.discard(name)


def first_place(attempt: str, worker: int, num_workers: int, num_shards: int) -> int:
    """Where in the plan a worker begins: those of one launch evenly apart, those of two launches somewhere else."""
    launch = int(sha256_hex(attempt.encode())[:8], 16)
    return (launch + worker * num_shards // num_workers) % num_shards
