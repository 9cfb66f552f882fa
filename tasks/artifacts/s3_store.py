"""The store on S3 and what speaks its protocol, through s3fs.

Endpoint, region and credentials come from the usual AWS variables (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, …), so they
are never in a profile, a manifest or a log.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tasks.artifacts.disk import FULL, REFUSED, disk_error, receiving
from tasks.artifacts.errors import (
    BadInputError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectMissingError,
    StoreError,
    StoreMissingError,
    TransientStoreError,
)
from tasks.artifacts.s3_session import quick_session
from tasks.artifacts.store import ObjectInfo, Store, UnfinishedUpload, Versioned, checked

if TYPE_CHECKING:
    import zarr.abc.store

T = TypeVar("T")

_TRANSIENT = {errno.EBUSY, errno.EREMOTEIO, errno.ECONNREFUSED, errno.ECONNRESET, errno.ETIMEDOUT, errno.EIO}


_CONDITIONS = {"PreconditionFailed", "412", "ConditionalRequestConflict"}
_CREATE_TRIES = 5
_READ_TRIES = 5
_CONNECTIONS = 32
"""That the client keeps open, and requests for small objects at a time: at 20 ms each one alone reads 50 a second."""
_CALLER = "medius"
"""What the client calls itself: its own description is put together anew for each request, a sixth of its work."""
_READ_AHEAD = 320
"""Objects of such a row that are asked for before the first of them is taken: receipts of a dump are 20 kB each."""


def _code(error: BaseException) -> str | None:
    """The code of the server's answer behind an error; None where it gave none."""
    response = getattr(error.__cause__, "response", None) or {}
    code = response.get("Error", {}).get("Code")
    return None if code is None else str(code)


def _unless_error(found: bytes | Exception) -> bytes:
    if isinstance(found, Exception):
        raise found
    return found


class ConditionFailedError(Exception):
    """The server answered 412 (or 409 while another conditional write was under way)."""


class S3Store(Store):
    """Objects below `s3://bucket/prefix`."""

    def __init__(self, uri: str) -> None:
        import s3fs

        session = quick_session()
        self.uri = uri.rstrip("/")
        self.bucket, _, self.prefix = self.uri.removeprefix("s3://").partition("/")
        if self.prefix:
            checked(self.prefix)
        # Listings must show what another process wrote a moment ago.
        self.fs = s3fs.S3FileSystem(
            session=session,
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs={"max_pool_connections": _CONNECTIONS, "user_agent": _CALLER},
        )
        self._zarr_fs = s3fs.S3FileSystem(
            session=session,
            asynchronous=True,
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs={"user_agent": _CALLER},
        )

    def key(self, path: str) -> str:
        """The object's key in the bucket."""
        return f"{self.prefix}/{checked(path)}" if self.prefix else checked(path)

    def call(self, path: str, action: Callable[[], T]) -> T:
        """What `action`, a request about `path`, returns.

        Raises:
            StoreError: with the full URI and what to do.
            BadInputError: AWS_ENDPOINT_URL is none.
            ConditionFailedError: the request had a condition, and it did not hold.
        """
        from aiohttp import ClientError
        from botocore.exceptions import BotoCoreError

        try:
            return action()
        except ValueError as error:
            # Where the client is made, which is at the first request.
            if not str(error).startswith("Invalid endpoint"):
                raise
            raise BadInputError(
                f"AWS_ENDPOINT_URL is no address of an S3 server ({error}); give it as http://HOST:PORT or https://HOST"
            ) from error
        except (BotoCoreError, ClientError, OSError, TimeoutError) as error:
            raise self._told(path, error) from error

    def _told(self, path: str, error: Exception) -> Exception:
        """What `call` raises for a request about `path` that was not answered, or was refused."""
        from aiohttp import ClientError
        from botocore.exceptions import NoCredentialsError

        where = self.locate(path)
        if isinstance(error, NoCredentialsError):
            return StoreError(
                f"no credentials for {where}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL "
                f"where the server is not AWS)"
            )
        if isinstance(error, FileExistsError) or _code(error) in _CONDITIONS:
            return ConditionFailedError()
        lasting = isinstance(error, OSError) and error.errno not in _TRANSIENT
        if lasting and not isinstance(error, ClientError | TimeoutError):
            assert isinstance(error, OSError)
            return self._refusal(where, error)
        return TransientStoreError(f"{where}: the object store does not answer ({error})")

    def _refusal(self, where: str, error: OSError) -> StoreError:
        """What a definite answer of the server means. To s3fs several of them are one class; the code tells."""
        match _code(error):
            case "NoSuchBucket":
                return StoreMissingError(
                    f"there is no bucket {self.bucket} for {where}; create it, or correct its name and AWS_ENDPOINT_URL"
                )
            case "IncompleteBody" | "BadDigest" | "NoSuchUpload" as code:
                return TransientStoreError(f"{where}: the bytes were damaged or lost on the way ({code}: {error})")
            case "RequestTimeTooSkewed":
                return StoreError(
                    f"the server refuses access to {where}, as this machine's clock is off the server's by more than "
                    f"15 minutes; set the clock by NTP"
                )
        if isinstance(error, FileNotFoundError):
            return ObjectMissingError(f"{where} does not exist")
        if isinstance(error, PermissionError):
            return StoreError(f"access to {where} was denied ({error}); check the credentials and the policy")
        return StoreError(f"{where}: {error}")

    def _put(self, path: str, data: bytes, **condition: str) -> str:
        def action() -> Any:
            return self.fs.call_s3("put_object", Bucket=self.bucket, Key=self.key(path), Body=data, **condition)

        return str(self.call(path, action)["ETag"])

    def get(self, path: str) -> bytes:
        return self.read(path).data

    def get_all(self, paths: Sequence[str]) -> Iterator[bytes]:
        # A part at a time: what has not been taken yet stays in memory.
        for start in range(0, len(paths), _READ_AHEAD):
            part = paths[start : start + _READ_AHEAD]
            keys = [f"{self.bucket}/{self.key(path)}" for path in part]

            def action(keys: list[str] = keys) -> list[bytes | Exception]:
                # With more than one connection an object it asks for the size first.
                found = self.fs.cat_ranges(
                    keys, None, None, on_error="return", batch_size=_CONNECTIONS, max_concurrency=1
                )
                return cast("list[bytes | Exception]", found)

            for path, data in zip(part, self.call(part[0], action), strict=True):
                yield self.call(path, partial(_unless_error, data))

    def read(self, path: str) -> Versioned:
        from fsspec.asyn import sync
        from s3fs.core import S3_RETRYABLE_ERRORS

        async def fetch(tries: int = _READ_TRIES) -> Versioned:
            response = await self.fs._call_s3("get_object", Bucket=self.bucket, Key=self.key(path))
            try:
                async with response["Body"] as body:
                    return Versioned(await body.read(), response["ETag"], response["LastModified"].timestamp())
            except S3_RETRYABLE_ERRORS:
                # The client repeats requests, not the reading of a body that ends early.
                if tries == 1:
                    raise
                return await fetch(tries - 1)

        return self.call(path, lambda: sync(self.fs.loop, fetch))

    def put(self, path: str, data: bytes) -> None:
        self._put(path, data)

    def create(self, path: str, data: bytes) -> str:
        for _ in range(_CREATE_TRIES):
            try:
                return self._put(path, data, IfNoneMatch="*")
            except ConditionFailedError:
                # Another writer won, or a retry inside the client met its own first attempt, or (409) a conditional
                # write was under way.
                try:
                    there = self.read(path)
                except ObjectMissingError:
                    continue
                if there.data != data:
                    raise ObjectExistsError(f"{self.locate(path)} exists already") from None
                return there.etag
        raise TransientStoreError(f"{self.locate(path)} appears and vanishes while it is written; try again")

    def replace(self, path: str, data: bytes, etag: str) -> str:
        try:
            return self._put(path, data, IfMatch=etag)
        except (ConditionFailedError, ObjectMissingError) as error:
            try:
                there = self.read(path)
            except ObjectMissingError:
                there = None
            if there is not None and there.data == data:
                return there.etag
            raise ObjectChangedError(f"{self.locate(path)} was changed by another run") from error

    def exists(self, path: str) -> bool:
        try:
            self.call(path, lambda: self.fs.call_s3("head_object", Bucket=self.bucket, Key=self.key(path)))
        except ObjectMissingError:
            return False
        return True

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        skip = len(self.prefix) + 1 if self.prefix else 0
        found = {entry["Key"]: entry for page in self._pages(prefix) for entry in page.get("Contents", ())}
        for name in sorted(found):
            # A folder that some tool has made an object of.
            if not name.endswith("/"):
                entry = found[name]
                yield ObjectInfo(name[skip:], entry["Size"], entry["LastModified"].timestamp())

    def children(self, folder: str) -> set[str]:
        above, names = len(self.key(folder)) + 1, set[str]()
        for page in self._pages(folder, Delimiter="/"):
            names |= {entry["Key"][above:] for entry in page.get("Contents", ())}
            names |= {entry["Prefix"][above:-1] for entry in page.get("CommonPrefixes", ())}
        return names - {""}

    def _pages(self, folder: str, **more: str) -> Iterator[dict[str, Any]]:
        """What the server lists below a folder.

        `find` and `ls` of s3fs ask up to three times where nothing is, and list the folder above.
        """
        asked = {"Bucket": self.bucket, "Prefix": f"{self.key(folder)}/", **more}
        while True:
            try:
                page = self.call(folder, partial(self.fs.call_s3, "list_objects_v2", **asked))
            except ObjectMissingError:
                # Some servers answer so where there is nothing.
                return
            yield page
            if not page.get("IsTruncated"):
                return
            asked["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, path: str) -> None:
        self.call(path, lambda: self.fs.call_s3("delete_object", Bucket=self.bucket, Key=self.key(path)))

    def upload(self, source: Path, path: str) -> None:
        self.call(path, lambda: self.fs.put_file(str(source), f"{self.bucket}/{self.key(path)}"))

    def download(self, path: str, target: Path) -> None:
        with receiving(target) as temporary:

            def action() -> None:
                try:
                    self.fs.get_file(f"{self.bucket}/{self.key(path)}", str(temporary))
                except OSError as error:
                    # Without an answer of the server it is this machine's disk that says so.
                    if _code(error) is None and error.errno in FULL | REFUSED:
                        raise disk_error(error, str(target.parent), str(target.parent)) from error
                    raise

            self.call(path, action)

    def now(self) -> float:
        def action() -> Any:
            return self.fs.call_s3("list_objects_v2", Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)

        headers = self.call("", action)["ResponseMetadata"]["HTTPHeaders"]
        return parsedate_to_datetime(headers["date"]).timestamp()

    def local_path(self, path: str) -> None:
        return None

    def reading(self, path: str, action: Callable[[], T]) -> T:
        return self.call(path, action)

    def unfinished_uploads(self) -> Iterator[UnfinishedUpload]:
        prefix, marker = f"{self.prefix}/" if self.prefix else "", {"KeyMarker": "", "UploadIdMarker": ""}
        while True:

            def action(marker: dict[str, str] = marker) -> Any:
                return self.fs.call_s3("list_multipart_uploads", Bucket=self.bucket, Prefix=prefix, **marker)

            page = self.call("", action)
            for found in page.get("Uploads", ()):
                path = found["Key"].removeprefix(prefix)
                yield UnfinishedUpload(path, found["Initiated"].timestamp(), found["UploadId"])
            if not page.get("IsTruncated"):
                return
            marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def abort_upload(self, upload: UnfinishedUpload) -> None:
        def action() -> None:
            key = self.key(upload.path)
            # Its writer may have finished it, or given it up, since it was listed.
            with suppress(FileNotFoundError):
                self.fs.call_s3("abort_multipart_upload", Bucket=self.bucket, Key=key, UploadId=upload.upload)

        self.call(upload.path, action)

    def zarr_store(self, path: str) -> zarr.abc.store.Store:
        from tasks.artifacts.s3_zarr import S3ZarrStore

        store = S3ZarrStore(self._zarr_fs, path=f"{self.bucket}/{self.key(path)}", read_only=True)
        store.told = partial(self._told, path)
        return store
