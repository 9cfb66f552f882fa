"""`medius verify` reads every byte and names what is wrong."""

from __future__ import annotations

import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.manifest import Manifest
from tasks.artifacts.store import Store
from tasks.artifacts.verify import find_damage
from tests.artifacts.records import KEY, manifest_of, receipt_of


@pytest.fixture
def artifact(any_store: Store) -> Artifact:
    return Artifact(any_store, f"artifacts/models/a-{KEY[:16]}")


@pytest.fixture
def manifest(artifact: Artifact) -> Manifest:
    files = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"[]"}
    return artifact.commit(manifest_of(receipt_of(artifact, "main", files).objects))


def damaged(artifact: Artifact, name: str) -> str:
    return f"{artifact.uri}/data/main-aaaaaaaa/{name} ({name})"


def test_a_whole_artifact_has_no_damage(artifact: Artifact, manifest: Manifest) -> None:
    assert find_damage(artifact, manifest) == []


def test_a_flipped_byte_is_named(artifact: Artifact, manifest: Manifest) -> None:
    artifact.store.put(artifact.path("data/main-aaaaaaaa/model.safetensors"), b"weighty")
    assert find_damage(artifact, manifest) == [
        f"{damaged(artifact, 'model.safetensors')} has other bytes than were committed"
    ]


def test_a_truncated_object_is_named(artifact: Artifact, manifest: Manifest) -> None:
    artifact.store.put(artifact.path("data/main-aaaaaaaa/model.safetensors"), b"wei")
    assert find_damage(artifact, manifest) == [
        f"{damaged(artifact, 'model.safetensors')} has 3 bytes, the manifest says 7"
    ]


def test_every_damaged_object_is_named_once(artifact: Artifact, manifest: Manifest) -> None:
    artifact.store.delete(artifact.path("data/main-aaaaaaaa/config.json"))
    artifact.store.put(artifact.path("data/main-aaaaaaaa/tokenizer.json"), b"")
    assert find_damage(artifact, manifest) == [
        f"{damaged(artifact, 'config.json')} is missing",
        f"{damaged(artifact, 'tokenizer.json')} has 0 bytes, the manifest says 2",
    ]


def test_a_manifest_that_lost_an_object_is_named(artifact: Artifact, manifest: Manifest) -> None:
    shorter = manifest.model_copy(update={"objects": manifest.objects[:-1]})
    assert find_damage(artifact, shorter) == [
        f"{artifact.uri}/manifest.json does not have the digest of its own object list"
    ]
