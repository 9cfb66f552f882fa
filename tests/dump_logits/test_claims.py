"""Leased shards: what several workers take of one plan."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from tasks.artifacts.artifact import Artifact, encode_record
from tasks.artifacts.lease import Lease, LeaseRecord
from tasks.artifacts.manifest import ShardReceipt
from tasks.artifacts.store import Store
from tasks.dump_logits.claims import Claim, ShardClaims, first_place

NAMES = [f"train-{index:05d}" for index in range(6)]


def artifact_in(store: Store) -> Artifact:
    return Artifact(store, "artifacts/dump_logits/logits-0123456789abcdef")


def finish(artifact: Artifact, claim: Claim, write_id: str = "0") -> None:
    receipt = ShardReceipt(shard=claim.name, write_id=write_id, objects=(), inputs={}, metrics={}, covers=())
    assert artifact.add_shard(receipt).write_id == write_id, f"{claim.name} was written twice"
    claim.release()


def taken(claims: ShardClaims) -> Claim:
    claim = claims.take()
    assert claim is not None
    return claim


def test_each_shard_is_taken_once_from_where_a_worker_begins(store: Store) -> None:
    artifact = artifact_in(store)
    one, two = ShardClaims(artifact, NAMES, 0, 60), ShardClaims(artifact, NAMES, 4, 60)
    first, second = taken(one), taken(two)
    assert (first.name, second.name) == (NAMES[0], NAMES[4])
    finish(artifact, first)
    others = [taken(two) for _ in range(2)]
    # It wraps around, over what is finished.
    assert [claim.name for claim in others] == [NAMES[5], NAMES[1]]
    assert [taken(one).name, taken(one).name] == [NAMES[2], NAMES[3]]
    assert one.take() is None
    assert not one.only_mine_left
    # What is let go without a receipt is free again.
    second.release()
    assert taken(one).name == NAMES[4]


def test_a_finished_shard_that_was_not_listed_yet_is_not_taken(store: Store) -> None:
    artifact = artifact_in(store)
    one, two = ShardClaims(artifact, NAMES[:1], 0, 60), ShardClaims(artifact, NAMES[:1], 0, 60)
    finish(artifact, taken(one))
    two.look = lambda: False  # type: ignore[method-assign]
    assert two.take() is None
    assert [entry.path for entry in store.list(artifact.path("leases"))] == []


def test_a_shard_whose_worker_was_killed_is_free_at_once(store: Store) -> None:
    artifact = artifact_in(store)
    code = (
        "import sys, time; from tests.dump_logits.test_claims import *; from tasks.artifacts.store import open_store; "
        "print(taken(ShardClaims(artifact_in(open_store(sys.argv[1])), NAMES, 2, 600)).name, flush=True); "
        "time.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", code, store.uri], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == NAMES[2]
        claims = ShardClaims(artifact, NAMES[2:3], 0, 600)
        assert claims.take() is None
        process.kill()
        process.wait()
        assert taken(claims).name == NAMES[2]


def test_a_shard_that_another_took_over_is_lost_and_stays_the_others(store: Store) -> None:
    artifact = artifact_in(store)
    slow = taken(ShardClaims(artifact, NAMES[:1], 0, 1))
    path = artifact.path(f"leases/{NAMES[0]}.json")
    # What a worker on another host writes once this one's lease has expired.
    record = Lease(store, path, 60).record.model_copy(update={"host": "node7", "boot": "another"})
    store.put(path, encode_record(record))
    deadline = time.monotonic() + 10
    while not slow.lost:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    slow.release()
    assert LeaseRecord.model_validate_json(store.get(path)) == record
    assert ShardClaims(artifact, NAMES[:1], 0, 1).take() is None


def test_workers_in_a_race_make_every_shard_once(store: Store) -> None:
    artifact = artifact_in(store)
    names = [f"train-{index:05d}" for index in range(40)]
    made: list[str] = []
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            claims = ShardClaims(artifact, names, first_place("same", 0, 1, len(names)), 60)
            while not claims.look():
                if (claim := claims.take()) is None:
                    time.sleep(0.01)
                    continue
                made.append(claim.name)
                finish(artifact, claim, str(number))
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert failures == []
    assert sorted(made) == names


def test_workers_of_a_launch_begin_apart() -> None:
    places = [first_place("0123abcd", worker, 4, 100) for worker in range(4)]
    assert sorted((place - places[0]) % 100 for place in places) == [0, 25, 50, 75]
    assert len({first_place(f"{attempt:08x}", 0, 1, 10**6) for attempt in range(50)}) == 50
