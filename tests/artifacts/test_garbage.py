"""What is garbage, on local disk and on a real S3 server: never what a root, a lease or the grace period keeps."""

from __future__ import annotations

import pytest

from tasks.artifacts.artifact import Artifact, encode_record
from tasks.artifacts.garbage import DAY, Garbage, find_garbage, folder_of
from tasks.artifacts.lease import Lease
from tasks.artifacts.manifest import MAIN_SHARD, InputRecord
from tasks.artifacts.removal import LOOK_EVERY, remove
from tasks.artifacts.runs import RunRecord, RunStep, runs_written_since, write_run
from tasks.artifacts.store import Store
from tests.artifacts.records import manifest_of, receipt_of

HOUR = 3600.0
KEY = "0123456789abcdef"


@pytest.fixture
def store(any_store: Store) -> Store:
    return any_store


def finished(store: Store, name: str, inputs: dict[str, Artifact] | None = None) -> Artifact:
    """A finished artifact with a lost attempt and a checkpoint beside it."""
    artifact = Artifact(store, f"artifacts/models/{name}-{KEY}")
    receipt = artifact.add_shard(receipt_of(artifact, MAIN_SHARD, {"weights": b"w" * 100}))
    receipt_of(artifact, MAIN_SHARD, {"weights": b"lost"}, attempt="bbbbbbbb")
    store.put(artifact.path("checkpoints/step-4-aaaaaaaa/state"), b"state")
    store.put(artifact.path("logs/worker-aaaaaaaa.log"), b"log")
    records = {
        role: InputRecord(key=source.directory, digest="", directory=source.directory)
        for role, source in (inputs or {}).items()
    }
    artifact.commit(manifest_of(receipt.objects).model_copy(update={"inputs": records}))
    return artifact


def found(store: Store, *roots: Artifact, grace: float = 0) -> dict[str, Garbage]:
    return {entry.folder: entry for entry in find_garbage(store, [root.directory for root in roots], grace)}


def test_a_kept_artifact_keeps_its_objects_and_its_inputs(store: Store) -> None:
    source = finished(store, "source")
    result = finished(store, "result", {"model": source})
    other = finished(store, "other")
    garbage = found(store, result)
    assert set(garbage) == {source.directory, result.directory, other.directory}
    assert garbage[other.directory].reason == "no profile or retained run has it"
    assert len(garbage[other.directory].paths) == len(list(store.list(other.directory)))
    for artifact in (source, result):
        assert set(garbage[artifact.directory].paths) == {
            artifact.path("data/main-bbbbbbbb/weights"),
            artifact.path("checkpoints/step-4-aaaaaaaa/state"),
        }
        assert garbage[artifact.directory].size == len(b"lost") + len(b"state")

    for entry in garbage.values():
        assert remove(store, entry, 0)
    assert list(store.list(other.directory)) == []
    for artifact in (source, result):
        manifest = artifact.manifest()
        assert manifest is not None
        for record in manifest.objects:
            assert store.exists(artifact.path(record.path))
        assert store.exists(artifact.path("logs/worker-aaaaaaaa.log"))
    assert found(store, result) == {}


def test_what_is_young_is_kept(store: Store) -> None:
    other = finished(store, "other")
    assert found(store, grace=HOUR) == {}
    [garbage] = find_garbage(store, [], 0)
    assert not remove(store, garbage, HOUR), "a run came back to it after it was looked at"
    assert other.manifest() is not None


def test_what_a_living_run_holds_is_kept(store: Store) -> None:
    artifact = finished(store, "other")
    shared = finished(store, "shared")
    for path in (artifact.path("lease.json"), shared.path("leases/00001.json")):
        lease = Lease(store, path, 60)
        lease.acquire(0)
        with lease:
            assert set(found(store)) == {artifact.directory, shared.directory} - {folder_of(path)}
    assert set(found(store)) == {artifact.directory, shared.directory}


def test_a_dead_runs_lease_keeps_nothing(store: Store) -> None:
    artifact = finished(store, "other")
    record = Lease(store, "x", 3600).record
    store.put(artifact.path("lease.json"), encode_record(record))
    assert found(store) == {}
    store.put(artifact.path("lease.json"), encode_record(record.model_copy(update={"process_started": "1"})))
    assert set(found(store)) == {artifact.directory}


def test_an_unfinished_artifact_of_a_profile_keeps_what_a_run_resumes_from(store: Store) -> None:
    artifact = Artifact(store, f"artifacts/models/begun-{KEY}")
    artifact.add_shard(receipt_of(artifact, "00001", {"rows": b"rows"}))
    receipt_of(artifact, "00002", {"rows": b"half"}, attempt="cccccccc")
    store.put(artifact.path("checkpoints/step-4-aaaaaaaa/state"), b"state")
    assert found(store, artifact)[artifact.directory].paths == (artifact.path("data/00002-cccccccc/rows"),)
    given_up = found(store)[artifact.directory]
    assert given_up.reason == "begun, and given up by its profile"
    assert len(given_up.paths) == 4


def test_of_several_attempts_at_a_shard_the_one_in_its_receipt_stays(store: Store) -> None:
    artifact = Artifact(store, f"artifacts/models/begun-{KEY}")
    for shard in ("x", "x-r1", "x-2"):
        artifact.add_shard(receipt_of(artifact, shard, {"rows": b"rows"}))
    # Rank 1 lost the race for x, rank 2 won the one for y, and x-r3 was never ended.
    for shard, attempt in (("x", "r1-bbbbbbbb"), ("x-r3", "cccccccc")):
        receipt_of(artifact, shard, {"rows": b"lost"}, attempt=attempt)
    artifact.add_shard(receipt_of(artifact, "y", {"rows": b"rows"}, attempt="r2-aaaaaaaa"))
    assert found(store, artifact)[artifact.directory].paths == (
        artifact.path("data/x-r1-bbbbbbbb/rows"),
        artifact.path("data/x-r3-cccccccc/rows"),
    )


def test_a_receipt_is_read_only_where_it_decides(store: Store) -> None:
    artifact = Artifact(store, f"artifacts/models/begun-{KEY}")
    artifact.add_shard(receipt_of(artifact, "00001", {"rows": b"rows"}))
    store.put(artifact.path("shards/00001.json"), b"torn")
    said: list[str] = []
    assert list(find_garbage(store, [artifact.directory], 0, tell=said.append)) == []
    assert said == []
    receipt_of(artifact, "00001", {"rows": b"other"}, attempt="bbbbbbbb")
    assert list(find_garbage(store, [artifact.directory], 0, tell=said.append)) == []
    assert "was left alone" in said[0]


def test_an_interrupted_removal_leaves_nothing_that_looks_finished(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = finished(store, "other")
    [garbage] = find_garbage(store, [], 0)
    deleted: list[str] = []
    real = store.delete

    def killed_after_two(path: str) -> None:
        if len(deleted) == 2:
            raise KeyboardInterrupt
        deleted.append(path)
        real(path)

    monkeypatch.setattr(store, "delete", killed_after_two)
    with pytest.raises(KeyboardInterrupt):
        remove(store, garbage, 0)
    assert deleted == [artifact.path("manifest.json"), artifact.path("shards/main.json")]


def test_proofs_that_were_killed_leave_garbage(store: Store) -> None:
    store.put("probe/1234", b"x")
    assert found(store)["probe"].paths == ("probe/1234",)


def test_artifacts_of_labels_with_a_slash_are_each_their_own(store: Store) -> None:
    kept = finished(store, "model-org/kept")
    other = finished(store, "model-org/other")
    attempt = f"artifacts/models/model-org/killed-{KEY}/data/main-aaaaaaaa/weights"
    store.put(attempt, b"w")
    for entry in list(find_garbage(store, [kept.directory], 0)):
        assert remove(store, entry, 0)
    assert list(store.list(other.directory)) == []
    assert not store.exists(attempt)
    manifest = kept.manifest()
    assert manifest is not None
    assert all(store.exists(kept.path(record.path)) for record in manifest.objects)


def test_files_of_an_artifact_that_look_like_another_are_its_own() -> None:
    folder = f"artifacts/models/model-x-{KEY}"
    for name in ("manifest.json", "data/main-aaaaaaaa/manifest.json", f"data/main-aaaaaaaa/y-{KEY}/lease.json"):
        assert folder_of(f"{folder}/{name}") == folder


def test_a_folder_without_a_key_is_left_alone_and_named(store: Store) -> None:
    store.put("artifacts/models/notes/of-mine.txt", b"x")
    store.put("artifacts/stray", b"x")
    said: list[str] = []
    assert list(find_garbage(store, [], 0, tell=said.append)) == []
    assert [sentence.split(" was left alone: ")[0] for sentence in said] == [
        store.locate("artifacts/models/notes"),
        store.locate("artifacts/stray"),
    ]


def test_old_logs_of_a_kept_artifact_go_and_young_ones_stay(store: Store) -> None:
    artifact = finished(store, "kept")
    logs = [artifact.path("logs/worker-aaaaaaaa.log")]

    def old_logs(seconds: float) -> list[str]:
        found = find_garbage(store, [artifact.directory], 0, log_seconds=seconds)
        return [path for entry in found if entry.reason == "logs past their time" for path in entry.paths]

    assert old_logs(DAY) == []
    assert old_logs(0) == logs


def test_a_run_that_takes_the_folder_up_keeps_it(store: Store) -> None:
    artifact = finished(store, "other")
    [garbage] = find_garbage(store, [], 0)
    lease = Lease(store, artifact.path("lease.json"), 60)
    lease.acquire(0)
    with lease:
        assert not remove(store, garbage, 0)
    assert artifact.manifest() is not None
    assert not remove(store, garbage, 0, lambda: {artifact.directory})
    assert artifact.manifest() is not None
    assert not store.exists(artifact.path("lease.json")), "what is not removed is free again"


def test_a_run_that_names_the_folder_while_its_manifest_goes_gets_it_back(store: Store) -> None:
    artifact = finished(store, "other")
    [garbage] = find_garbage(store, [], 0)
    before = store.get(artifact.path("manifest.json"))
    held: list[bool] = []

    def claimed() -> set[str]:
        there = store.exists(artifact.path("manifest.json"))
        held.append(store.exists(artifact.path("lease.json")))
        return set() if there else {artifact.directory}

    assert not remove(store, garbage, 0, claimed)
    assert store.get(artifact.path("manifest.json")) == before
    assert len(list(store.list(artifact.directory))) == len(garbage.paths), "nothing else was removed"
    assert all(held), "a run that finds no manifest waits for the lease"


@pytest.mark.parametrize("how", ["names it", "leases a shard"])
def test_a_run_that_begins_on_a_dump_while_it_goes_keeps_the_rest(
    store: Store, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """As of a stage whose runs share its shards, and make them without the artifact's lease."""
    dump = Artifact(store, f"artifacts/dump_logits/begun-{KEY}")
    shards = [f"{number:05d}" for number in range(2 * LOOK_EVERY)]
    for shard in shards:
        dump.add_shard(receipt_of(dump, shard, {"rows": b"rows"}))
    [garbage] = find_garbage(store, [], 0)
    began = store.now()
    step = RunStep(label="dump", stage="dump_logits", key=KEY, directory=dump.directory)
    lease = Lease(store, dump.path(f"leases/{shards[-1]}.json"), 60)
    deleted: list[str] = []
    real = store.delete

    def begin() -> None:
        if how == "names it":
            write_run(store, RunRecord(run="r", profile="p", config={}, steps=(step,), started="2001-01-01T00:00:00Z"))
        else:
            lease.acquire(0)

    def delete(path: str) -> None:
        deleted.append(path)
        if len(deleted) == 3:
            begin()
        real(path)

    def claimed() -> set[str]:
        return {entry.directory for run in runs_written_since(store, began) for entry in run.steps}

    monkeypatch.setattr(store, "delete", delete)
    assert not remove(store, garbage, 0, claimed)
    left = dump.receipts()
    assert len(left) == len(shards) - LOOK_EVERY
    for receipt in left.values():
        assert all(store.exists(dump.path(entry.path)) for entry in receipt.objects)
    assert all("/shards/" in path for path in deleted[:LOOK_EVERY])
    assert not store.exists(dump.path("lease.json")), "what is not removed is free again"
