"""What is garbage, on local disk and on a real S3 server: never what a root, a lease or the grace period keeps."""

from __future__ import annotations

import pytest

from tasks.artifacts.artifact import Artifact, encode_record
from tasks.artifacts.garbage import Garbage, find_garbage, remove
from tasks.artifacts.lease import Lease
from tasks.artifacts.manifest import MAIN_SHARD, InputRecord
from tasks.artifacts.store import Store
from tests.artifacts.records import manifest_of, receipt_of

HOUR = 3600.0


@pytest.fixture
def store(any_store: Store) -> Store:
    return any_store


def finished(store: Store, name: str, inputs: dict[str, Artifact] | None = None) -> Artifact:
    """A finished artifact with a lost attempt and a checkpoint beside it."""
    artifact = Artifact(store, f"artifacts/models/{name}")
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
            assert set(found(store)) == {artifact.directory, shared.directory} - {"/".join(path.split("/")[:3])}
    assert set(found(store)) == {artifact.directory, shared.directory}


def test_a_dead_runs_lease_keeps_nothing(store: Store) -> None:
    artifact = finished(store, "other")
    record = Lease(store, "x", 3600).record
    store.put(artifact.path("lease.json"), encode_record(record))
    assert found(store) == {}
    store.put(artifact.path("lease.json"), encode_record(record.model_copy(update={"process_started": "1"})))
    assert set(found(store)) == {artifact.directory}


def test_an_unfinished_artifact_of_a_profile_keeps_what_a_run_resumes_from(store: Store) -> None:
    artifact = Artifact(store, "artifacts/models/begun")
    artifact.add_shard(receipt_of(artifact, "00001", {"rows": b"rows"}))
    receipt_of(artifact, "00002", {"rows": b"half"}, attempt="cccccccc")
    store.put(artifact.path("checkpoints/step-4-aaaaaaaa/state"), b"state")
    assert found(store, artifact)[artifact.directory].paths == (artifact.path("data/00002-cccccccc/rows"),)
    given_up = found(store)[artifact.directory]
    assert given_up.reason == "begun, and given up by its profile"
    assert len(given_up.paths) == 4


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
