"""Artifacts made by hand, for tests of the records alone."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.fingerprint import sha256_hex
from tasks.artifacts.manifest import MAIN_SHARD, Manifest, ObjectRecord, Provenance, ShardReceipt, digest_of

KEY = "0123456789abcdef" * 4


def receipt_of(
    artifact: Artifact, shard: str, files: Mapping[str, bytes], attempt: str = "aaaaaaaa", covers: tuple[str, ...] = ()
) -> ShardReceipt:
    """Writes the files as one attempt's objects of a shard; returns the receipt without publishing it."""
    prefix = "" if shard == MAIN_SHARD else f"{shard}/"
    objects = []
    for name, data in files.items():
        path = f"data/{shard}-{attempt}/{name}"
        artifact.store.put(artifact.path(path), data)
        objects.append(ObjectRecord(name=prefix + name, path=path, size=len(data), sha256=sha256_hex(data)))
    return ShardReceipt(shard=shard, write_id=uuid.uuid4().hex, objects=tuple(objects), covers=covers)


def manifest_of(objects: tuple[ObjectRecord, ...], metrics: Mapping[str, Any] | None = None) -> Manifest:
    """A manifest over these objects, as some run would commit it."""
    return Manifest(
        stage="models",
        version=1,
        label="models",
        key=KEY,
        digest=digest_of(objects),
        recipe={},
        inputs={},
        objects=objects,
        metrics=dict(metrics or {}),
        provenance=Provenance(
            write_id=uuid.uuid4().hex,
            created="2026-01-01T00:00:00Z",
            seconds=1.0,
            attempts=1,
            flow_run=None,
            git_sha=None,
            git_dirty=None,
            hardware={},
            versions={},
            runtime={},
        ),
    )
