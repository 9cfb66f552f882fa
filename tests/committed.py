"""What a committed artifact holds, for tests."""

from __future__ import annotations

from typing import Any

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.manifest import Manifest


def objects_of(artifact: Artifact) -> dict[str, bytes]:
    """The bytes of each object by its logical name."""
    return {entry.name: artifact.store.get(artifact.path(entry.path)) for entry in _manifest(artifact).objects}


def read(artifact: Artifact, name: str) -> bytes:
    """The bytes of the object with this logical name."""
    entry = _manifest(artifact).object(name)
    assert entry is not None, f"{artifact.uri} has no {name}"
    return artifact.store.get(artifact.path(entry.path))


def digest_of(artifact: Artifact) -> str:
    return _manifest(artifact).digest


def metrics_of(artifact: Artifact) -> dict[str, Any]:
    return _manifest(artifact).metrics


def _manifest(artifact: Artifact) -> Manifest:
    manifest = artifact.manifest()
    assert manifest is not None, f"{artifact.uri} is not finished"
    return manifest
