"""Two runs on one artifact: who works, who waits, and who takes over from whom."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from tasks.artifacts.artifact import encode_record
from tasks.artifacts.errors import (
    CorruptArtifactError,
    LeaseHeldError,
    LeaseLostError,
    StoreError,
    TransientStoreError,
)
from tasks.artifacts.lease import Lease, LeaseRecord
from tasks.artifacts.store import Store, open_store

PATH = "artifacts/distill/a-0123456789abcdef/lease.json"


def standing(store: Store) -> LeaseRecord:
    return LeaseRecord.model_validate_json(store.get(PATH))


def held_elsewhere(store: Store, ttl_seconds: float) -> LeaseRecord:
    """A lease as a run on another host would have written it just now."""
    mine = Lease(store, PATH, ttl_seconds).record
    record = mine.model_copy(update={"owner": "other", "host": "node7", "boot": "another"})
    store.put(PATH, encode_record(record))
    return record


def test_only_one_of_two_holds_it(any_store: Store) -> None:
    first, second = Lease(any_store, PATH, 60), Lease(any_store, PATH, 60)
    first.acquire(wait_seconds=0)
    with first:
        with pytest.raises(LeaseHeldError, match=rf"lease.json is held by process {first.record.process} on"):
            second.acquire(wait_seconds=0)
        assert standing(any_store).owner == first.record.owner
    assert not any_store.exists(PATH), "leaving the block releases it"
    second.acquire(wait_seconds=0)
    assert standing(any_store).owner == second.record.owner


@pytest.mark.parametrize("expired", [False, True], ids=["free", "expired"])
def test_one_winner_among_racing_runs(any_store: Store, expired: bool) -> None:
    if expired:
        held_elsewhere(any_store, ttl_seconds=0.1)
        # S3 counts whole seconds.
        time.sleep(1.5)
    leases = [Lease(any_store, PATH, 60) for _ in range(5)]
    barrier = threading.Barrier(len(leases))
    winners = []

    def race(lease: Lease) -> None:
        barrier.wait()
        try:
            lease.acquire(wait_seconds=0)
        except LeaseHeldError:
            return
        winners.append(lease.record.owner)

    threads = [threading.Thread(target=race, args=(lease,)) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert winners == [standing(any_store).owner]


def test_it_expires_by_the_servers_clock(any_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    held_elsewhere(any_store, ttl_seconds=2)
    waiting = Lease(any_store, PATH, 60)
    # This node's clock is a day ahead, which must not make the lease look expired.
    real = time.time
    monkeypatch.setattr("time.time", lambda: real() + 86400)
    with pytest.raises(LeaseHeldError, match="node7"):
        waiting.acquire(wait_seconds=0)
    monkeypatch.undo()
    start = time.monotonic()
    waiting.acquire(wait_seconds=10)
    assert time.monotonic() - start <= 6
    assert standing(any_store).owner == waiting.record.owner


def test_a_lease_that_is_renewed_does_not_expire(any_store: Store) -> None:
    first, second = Lease(any_store, PATH, 3), Lease(any_store, PATH, 3)
    first.acquire(wait_seconds=0)
    with first:
        with pytest.raises(LeaseHeldError):
            second.acquire(wait_seconds=4.5)
        assert standing(any_store).renewals >= 2
        first.require_held()


_HOLD = """
import sys, time
from tasks.artifacts.lease import Lease
from tasks.artifacts.store import open_store
lease = Lease(open_store(sys.argv[1]), sys.argv[2], 3600)
lease.acquire(0)
print("held", flush=True)
time.sleep(600)
"""


def test_a_dead_holder_on_this_host_is_replaced_at_once(store: Store) -> None:
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, store.uri, PATH], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    mine = Lease(store, PATH, 3600)
    with pytest.raises(LeaseHeldError, match=f"process {holder.pid} "):
        mine.acquire(wait_seconds=0)
    holder.kill()
    holder.wait()
    mine.acquire(wait_seconds=0)
    assert standing(store).owner == mine.record.owner


def test_a_process_that_took_over_a_dead_ones_number_is_not_the_holder(store: Store) -> None:
    record = Lease(store, PATH, 3600).record
    store.put(PATH, encode_record(record.model_copy(update={"owner": "gone", "process_started": "1"})))
    mine = Lease(store, PATH, 3600)
    mine.acquire(wait_seconds=0)
    assert standing(store).owner == mine.record.owner


def test_a_silent_holder_on_another_host_is_waited_for(store: Store) -> None:
    held_elsewhere(store, ttl_seconds=3600)
    with pytest.raises(LeaseHeldError, match="on node7"):
        Lease(store, PATH, 3600).acquire(wait_seconds=0)


def test_a_loss_is_told_and_the_new_holder_left_alone(any_store: Store) -> None:
    lost = threading.Event()
    lease = Lease(any_store, PATH, 1, lost.set)
    lease.acquire(wait_seconds=0)
    with lease:
        other = held_elsewhere(any_store, ttl_seconds=60)
        assert lost.wait(5)
        with pytest.raises(LeaseLostError, match="taken over by another run"):
            lease.require_held()
    assert standing(any_store).owner == other.owner


def test_a_renewal_whose_response_was_lost_is_no_loss(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = threading.Event()
    lease = Lease(store, PATH, 1, lost.set)
    lease.acquire(wait_seconds=0)
    replace = store.replace
    failures = iter(["after the write", "before the write"])

    def unreliable(path: str, data: bytes, etag: str) -> str:
        when = next(failures, None)
        if when == "before the write":
            raise StoreError("access was denied for a moment")
        answer = replace(path, data, etag)
        if when == "after the write":
            raise TransientStoreError("reset by peer")
        return answer

    monkeypatch.setattr(store, "replace", unreliable)
    with lease:
        assert not lost.wait(2.5)
        lease.require_held()
        assert standing(store).owner == lease.record.owner
        assert standing(store).renewals >= 4
    assert not store.exists(PATH)


def test_a_holder_in_another_container_is_never_called_dead(store: Store) -> None:
    """Two containers may show one host name and boot, and count their processes each for themselves."""
    record = Lease(store, PATH, 3600).record
    elsewhere = record.model_copy(update={"owner": "other", "namespace": "pid:[1]", "process_started": "1"})
    store.put(PATH, encode_record(elsewhere))
    with pytest.raises(LeaseHeldError):
        Lease(store, PATH, 3600).acquire(wait_seconds=0)


def test_a_deleted_lease_is_lost(store: Store) -> None:
    lost = threading.Event()
    lease = Lease(store, PATH, 1, lost.set)
    lease.acquire(wait_seconds=0)
    with lease:
        store.delete(PATH)
        assert lost.wait(5)
        assert lease.lost


def test_two_stores_hold_two_leases(store: Store, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = open_store(str(tmp_path_factory.mktemp("other")))
    leases = {where: Lease(where, PATH, 60) for where in (store, other)}
    for lease in leases.values():
        lease.acquire(wait_seconds=0)
    assert all(standing(where).owner == lease.record.owner for where, lease in leases.items())


def test_a_disk_that_is_away_for_a_moment_loses_no_lease(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = threading.Event()
    lease = Lease(store, PATH, 1, lost.set)
    lease.acquire(wait_seconds=0)
    failures: list[int] = []

    def away(_descriptor: int) -> None:
        failures.append(errno.EIO)
        raise OSError(errno.EIO, "Input/output error")

    with lease:
        monkeypatch.setattr("os.fsync", away)
        wait_until(lambda: len(failures) >= 2)
        monkeypatch.undo()
        before = standing(store).renewals
        wait_until(lambda: standing(store).renewals > before)
        assert not lost.is_set()
        lease.require_held()


def test_a_lease_of_another_version_is_one_sentence(store: Store) -> None:
    store.put(PATH, b'{"owner": "other", "until": 1}')
    with pytest.raises(CorruptArtifactError, match=rf"{PATH} cannot be read, as it was written by another version"):
        Lease(store, PATH, 60).acquire(wait_seconds=0)


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)
