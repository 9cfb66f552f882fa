"""Proof, before any work, that a store keeps the promise the protocol stands on: a conditional write has one winner.

Some S3 servers accept `If-None-Match` and ignore it. On such a server two runs would both believe that they committed.
"""

from __future__ import annotations

import uuid

from tasks.artifacts.errors import BadInputError, ObjectChangedError, ObjectExistsError
from tasks.artifacts.store import Store


def require_conditional_writes(store: Store) -> None:
    """Raises BadInputError where create-only or compare-and-swap writes are not honoured."""
    path = f"probe/{uuid.uuid4().hex}"
    advice = "use AWS S3, SeaweedFS, MinIO or a local directory"
    try:
        etag = store.create(path, b"first")
        try:
            store.create(path, b"second")
        except ObjectExistsError:
            pass
        else:
            raise BadInputError(
                f"the store {store.uri} ignores If-None-Match (a second create-only write won), so two runs could "
                f"overwrite each other; {advice}"
            )
        store.replace(path, b"third", etag)
        try:
            store.replace(path, b"fourth", etag)
        except ObjectChangedError:
            pass
        else:
            raise BadInputError(
                f"the store {store.uri} ignores If-Match (an overwrite of an old version succeeded), so a lease would "
                f"not exclude anyone; {advice}"
            )
    finally:
        store.delete(path)
