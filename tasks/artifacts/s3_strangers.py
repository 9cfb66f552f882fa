"""Clients that an S3 server must refuse, and how a refusal is told from other trouble."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import s3fs

BAD_REQUEST = 400
_DENIED = {401, 403}


def strangers() -> dict[str, s3fs.S3FileSystem]:
    """Clients by what they come with: none of them is the one whose keys the environment has."""
    import s3fs
    from botocore.session import get_session

    own = get_session().get_credentials()
    common = {"skip_instance_cache": True, "use_listings_cache": False}
    unknown = s3fs.S3FileSystem(key=f"probe-{uuid.uuid4().hex[:8]}", secret=uuid.uuid4().hex, **common)
    clients = {"a key that nobody has": unknown, "no key": s3fs.S3FileSystem(anon=True, **common)}
    if own is not None:
        # A server may know the key and never compare the signature.
        clients["this key and another secret"] = s3fs.S3FileSystem(
            key=own.access_key, secret=uuid.uuid4().hex, token=own.token, **common
        )
    return clients


def status(error: BaseException) -> int | None:
    """The HTTP status of the server's answer behind an error; None where none came."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            code = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return code if isinstance(code, int) else None
        cause = cause.__cause__
    return None


def is_denied(error: BaseException) -> bool:
    """Whether the server refused the credentials; a time-out or a fault of its own is no refusal."""
    return status(error) in _DENIED
