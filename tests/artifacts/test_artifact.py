"""An artifact exists if and only if its manifest does, and each of its parts has one writer."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import CorruptArtifactError, TransientStoreError
from tasks.artifacts.manifest import Manifest, ShardReceipt
from tasks.artifacts.store import Store
from tasks.artifacts.verify import find_damage
from tests.artifacts.records import KEY, manifest_of, receipt_of

DIRECTORY = f"artifacts/models/a-{KEY[:16]}"


def test_data_and_receipts_alone_are_no_artifact(any_store: Store) -> None:
    artifact = Artifact(any_store, DIRECTORY)
    artifact.add_shard(receipt_of(artifact, "main", {"a": b"1"}))
    assert artifact.manifest() is None
    assert list(artifact.receipts()) == ["main"]


def test_the_second_manifest_loses_and_the_first_is_returned(any_store: Store) -> None:
    artifact = Artifact(any_store, DIRECTORY)
    objects = receipt_of(artifact, "main", {"a": b"1"}).objects
    first, second = manifest_of(objects, {"loss": 1}), manifest_of(objects, {"loss": 2})
    assert artifact.commit(first) == first
    assert artifact.commit(second) == first
    assert artifact.manifest() == first


def test_one_manifest_stands_after_a_race(any_store: Store) -> None:
    artifact = Artifact(any_store, DIRECTORY)
    objects = receipt_of(artifact, "main", {"a": b"1"}).objects
    barrier = threading.Barrier(4)
    returned: list[Manifest] = []

    def commit(run: int) -> None:
        manifest = manifest_of(objects, {"run": run})
        barrier.wait()
        returned.append(artifact.commit(manifest))

    threads = [threading.Thread(target=commit, args=(run,)) for run in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert returned == [artifact.manifest()] * 4


def test_a_commit_whose_response_was_lost_is_recognised(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = Artifact(store, DIRECTORY)
    manifest = manifest_of(receipt_of(artifact, "main", {"a": b"1"}).objects)
    create = store.create

    def loses_the_response(path: str, data: bytes) -> str:
        create(path, data)
        raise TransientStoreError("reset by peer")

    monkeypatch.setattr(store, "create", loses_the_response)
    with pytest.raises(TransientStoreError):
        artifact.commit(manifest)
    monkeypatch.undo()
    assert artifact.commit(manifest) == manifest


@pytest.mark.parametrize("keep", [0, 1, 40])
def test_a_torn_manifest_is_one_sentence(store: Store, keep: int) -> None:
    artifact = Artifact(store, DIRECTORY)
    artifact.commit(manifest_of(()))
    store.put(artifact.path("manifest.json"), store.get(artifact.path("manifest.json"))[:keep])
    with pytest.raises(CorruptArtifactError, match=r"manifest\.json cannot be read, as it is torn: .*; .*move it away"):
        artifact.manifest()


def test_the_first_writer_of_a_shard_is_its_only_one(any_store: Store) -> None:
    artifact = Artifact(any_store, DIRECTORY)
    first = receipt_of(artifact, "00001", {"a": b"1"}, attempt="aaaaaaaa")
    second = receipt_of(artifact, "00001", {"a": b"2"}, attempt="bbbbbbbb")
    assert artifact.add_shard(first) == first
    assert artifact.add_shard(second) == first
    assert artifact.receipts() == {"00001": first}
    # Both attempts' objects stand, under paths of their own.
    assert any_store.get(artifact.path(first.objects[0].path)) == b"1"
    assert any_store.get(artifact.path(second.objects[0].path)) == b"2"


def covered(artifact: Artifact) -> dict[str, ShardReceipt]:
    artifact.add_shard(receipt_of(artifact, "b", {"x": b"1"}))
    artifact.add_shard(receipt_of(artifact, "a", {"x": b"22"}))
    artifact.add_shard(receipt_of(artifact, "left-over", {"x": b"333"}))
    artifact.add_shard(receipt_of(artifact, "main", {"index": b"{}"}, covers=("b", "a")))
    return artifact.receipts()


def test_an_artifact_is_made_of_main_and_what_it_covers(store: Store) -> None:
    artifact = Artifact(store, DIRECTORY)
    names = [entry.name for entry in artifact.covered_objects(covered(artifact))]
    assert names == ["a/x", "b/x", "index"], "sorted, and without the shard that main does not cover"


def test_a_covered_shard_without_a_receipt_is_named(store: Store) -> None:
    artifact = Artifact(store, DIRECTORY)
    receipts = covered(artifact)
    del receipts["a"]
    with pytest.raises(CorruptArtifactError, match=r"shard a has no receipt.*delete shards/main\.json"):
        artifact.covered_objects(receipts)


def test_the_digest_does_not_depend_on_attempts(store: Store) -> None:
    one, two = Artifact(store, DIRECTORY), Artifact(store, f"artifacts/models/b-{KEY[:16]}")
    objects = [
        receipt_of(artifact, "main", {"x": b"1", "y": b"2"}, attempt=attempt).objects
        for artifact, attempt in ((one, "aaaaaaaa"), (two, "bbbbbbbb"))
    ]
    assert objects[0] != objects[1]
    assert manifest_of(objects[0]).digest == manifest_of(objects[1]).digest


def test_fetch_lays_out_logical_names(any_store: Store, tmp_path: Path) -> None:
    artifact = Artifact(any_store, DIRECTORY)
    manifest = artifact.commit(manifest_of(receipt_of(artifact, "part", {"deep/x": b"11", "y": b"2"}).objects))
    target = artifact.fetch(manifest, tmp_path / "copy")
    assert (target / "part/deep/x").read_bytes() == b"11"
    assert (target / "part/y").read_bytes() == b"2"


def test_fetch_refuses_a_missing_object(any_store: Store, tmp_path: Path) -> None:
    artifact = Artifact(any_store, DIRECTORY)
    manifest = artifact.commit(manifest_of(receipt_of(artifact, "main", {"x": b"11"}).objects))
    any_store.delete(artifact.path(manifest.objects[0].path))
    with pytest.raises(CorruptArtifactError, match=r"data/main-aaaaaaaa/x is missing.*run again"):
        artifact.fetch(manifest, tmp_path / "copy")


def test_changed_bytes_of_one_size_are_found_by_the_fetch_or_by_verify(any_store: Store, tmp_path: Path) -> None:
    artifact = Artifact(any_store, DIRECTORY)
    manifest = artifact.commit(manifest_of(receipt_of(artifact, "main", {"x": b"11"}).objects))
    any_store.put(artifact.path(manifest.objects[0].path), b"12")
    if any_store.local_path("x") is not None:
        # Links to local objects are made without reading them.
        artifact.fetch(manifest, tmp_path / "copy")
        assert "other bytes" in find_damage(artifact, manifest)[0]
        return
    with pytest.raises(CorruptArtifactError, match="another checksum"):
        artifact.fetch(manifest, tmp_path / "copy")
    assert not (tmp_path / "copy" / "x").exists(), "what is damaged must not look fetched the next time"
