"""A lease on an artifact: it saves GPU hours by keeping two runs off the same work.

It does not give correctness: shards and manifests are create-only, so the worst that two holders can do is to compute
the same thing twice. A lease expires `ttl_seconds` after its last renewal by the *server's* clock (the object's
modification time against the server's date), so a wrong clock on a node neither steals nor keeps one. A holder on
this host that is no longer alive is replaced at once.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tasks.artifacts.artifact import decode_record, encode_record
from tasks.artifacts.errors import (
    LeaseHeldError,
    LeaseLostError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectMissingError,
    StoreError,
)
from tasks.artifacts.process_identity import ProcessIdentity, own_process
from tasks.artifacts.store import Store, Versioned


class LeaseRecord(ProcessIdentity):
    """Who holds an artifact, and until how long after the object's modification time."""

    owner: str
    ttl_seconds: float
    renewals: int = 0


def holder_is_dead(record: LeaseRecord) -> bool:
    """Whether the holder ran on this host and boot and is gone. A holder elsewhere is never called dead."""
    return record.is_gone()


class Lease:
    """Holds `path` in the store while the `with` block runs, renewing it from a thread.

    `on_lost` is called once from that thread when another run has taken the lease over; the block should then stop
    its work. Leaving the block raises nothing: whoever works on sees the loss through `lost`.
    """

    def __init__(self, store: Store, path: str, ttl_seconds: float, on_lost: Callable[[], None] | None = None) -> None:
        self.store = store
        self.path = path
        self.on_lost = on_lost
        self.lost = False
        self.record = LeaseRecord(owner=uuid.uuid4().hex, ttl_seconds=ttl_seconds, **own_process().model_dump())
        self._etag = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease {path}", daemon=True)

    def acquire(self, wait_seconds: float) -> None:
        """Takes the lease, waiting for the holder to release it, die or expire.

        Raises:
            LeaseHeldError: it is still held after `wait_seconds`.
        """
        deadline = time.monotonic() + wait_seconds
        while (holder := self._try()) != self.record.owner:
            if time.monotonic() >= deadline:
                raise LeaseHeldError(
                    f"{self.store.locate(self.path)} is held by {holder}; another run works on this artifact: wait for "
                    f"it, or stop it"
                )
            time.sleep(min(1.0, self.record.ttl_seconds / 10))

    def _try(self) -> str:
        """Returns this lease's owner id if it is held now, else a description of who holds it."""
        try:
            self._etag = self.store.create(self.path, encode_record(self.record))
        except ObjectExistsError:
            pass
        else:
            return self.record.owner
        try:
            there = self.store.read(self.path)
        except ObjectMissingError:
            return "a run that just released it"
        record = self._decode(there)
        left = there.modified + record.ttl_seconds - self.store.now()
        if left > 0 and not holder_is_dead(record):
            return f"process {record.process} on {record.host} (expires in {left:.0f} s unless renewed)"
        try:
            self._etag = self.store.replace(self.path, encode_record(self.record), there.etag)
        except ObjectChangedError:
            return "a run that was faster"
        return self.record.owner

    def _renew(self) -> None:
        while not self._stop.wait(self.record.ttl_seconds / 4):
            self.record = self.record.model_copy(update={"renewals": self.record.renewals + 1})
            try:
                self._etag = self.store.replace(self.path, encode_record(self.record), self._etag)
            except ObjectChangedError:
                if self._still_mine():
                    continue
                self.lost = True
                if self.on_lost is not None:
                    self.on_lost()
                return
            except StoreError:
                # Three more tries fit into the time to live; if all fail someone may take over, which the next sees.
                continue

    def _still_mine(self) -> bool:
        """Whether the version that stands there is a renewal of ours whose response was lost."""
        try:
            there = self.store.read(self.path)
            owner = self._decode(there).owner
        except ObjectMissingError:
            return False
        except StoreError:
            # Nothing is known; the next renewal asks again.
            return True
        if owner != self.record.owner:
            return False
        self._etag = there.etag
        return True

    def _decode(self, there: Versioned) -> LeaseRecord:
        return decode_record(LeaseRecord, there.data, self.store.locate(self.path))

    def require_held(self) -> None:
        """Raises LeaseLostError if another run took over."""
        if self.lost:
            raise LeaseLostError(
                f"{self.store.locate(self.path)} was taken over by another run while this one worked; that run goes on "
                f"from the finished shards, so there is nothing to do"
            )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self.lost:
            return
        try:
            there = self.store.read(self.path)
            if self._decode(there).owner == self.record.owner:
                self.store.delete(self.path)
        except StoreError:
            # Expiry frees it.
            return
