"""The store on a real S3 server: the same rows as on disk, and an outage that a retry may outlive is called one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tasks.artifacts.artifact import Artifact, encode_record
from tasks.artifacts.errors import TransientStoreError
from tasks.artifacts.store import Store, open_store
from tasks.logits.reader import LogitReader, LogitRow
from tests.seaweed import BUCKET, SeaweedServer


def copied(artifact: Artifact, store: Store) -> LogitReader:
    """A reader of the artifact's copy in another store."""
    manifest = artifact.manifest()
    assert manifest is not None
    there = Artifact(store, artifact.directory)
    for entry in manifest.objects:
        store.put(there.path(entry.path), artifact.store.get(artifact.path(entry.path)))
    store.create(there.path("manifest.json"), encode_record(manifest))
    return LogitReader(store, there.directory, manifest, cache_bytes=1)


def test_rows_on_s3_are_those_on_disk_in_any_order(
    server: SeaweedServer, logit_store: Artifact, artifact_of: Callable[..., Artifact]
) -> None:
    manifest = logit_store.manifest()
    assert manifest is not None
    here = LogitReader(logit_store.store, logit_store.directory, manifest).rows("train")
    there = copied(logit_store, open_store(f"s3://{BUCKET}/runs")).rows("train")
    order = [6, 2, 0, 5, 3, 1, 4, 2]
    for index, row in zip(order, there.many(order), strict=True):
        for name in LogitRow.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(row, name), getattr(here[index], name), err_msg=name)


def test_a_server_that_goes_away_while_rows_are_read_is_a_fault_to_retry(
    server: SeaweedServer, logit_store: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The client's own retries would go on for 40 s.
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    rows = copied(logit_store, open_store(f"s3://{BUCKET}/runs")).rows("train")
    assert rows[0].row_id
    server.kill()
    with pytest.raises(TransientStoreError, match="train-00000: the object store does not answer"):
        rows[2]
    with pytest.raises(TransientStoreError, match="the object store does not answer"):
        rows[6]
