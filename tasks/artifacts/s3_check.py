"""Whether an S3 server keeps the promises that a store stands on: the checks behind `medius s3-check`.

Each speaks to the server through the client that the store uses, below `<prefix>/probe/`, and removes what it wrote.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from tasks.artifacts.errors import BadInputError, StoreError
from tasks.artifacts.s3_store import ConditionFailedError, S3Store
from tasks.artifacts.s3_strangers import BAD_REQUEST, is_denied, status, strangers

NUM_WRITERS = 6
"""Writers that race for one object."""
PART_BYTES = 5 * 2**20
"""The least that S3 allows for any part but the last."""
MAX_SKEW_SECONDS = 300
"""S3 refuses requests that are signed 900 s off; what comes nearer than a third of that is told before it fails."""


@dataclass(frozen=True)
class Finding:
    """What one check found. `detail` is a sentence for people: what was seen, or what is wrong and what it would do."""

    check: str
    ok: bool
    detail: str


class _BrokenPromiseError(Exception):
    """The server did something else than it must."""


class S3Check:
    """The checks of one endpoint, bucket and prefix."""

    def __init__(self, uri: str) -> None:
        if not uri.startswith("s3://") or not uri.removeprefix("s3://").strip("/"):
            raise BadInputError(f"{uri!r} is no place in an object store; give s3://bucket/prefix")
        self.store = S3Store(uri)
        self._folder = f"probe/{uuid.uuid4().hex}"

    def run(self) -> Iterator[Finding]:
        """One finding a check, as they come. Where nothing can be written at all the first is the last."""
        checks: list[tuple[str, Callable[[], str]]] = [
            ("write and read", self._write_and_read),
            ("If-None-Match", self._create_only),
            ("If-Match", self._compare_and_swap),
            ("ranges", self._ranges),
            ("checksums", self._checksums),
            ("list after write", self._list_after_write),
            ("multipart", self._multipart),
            ("wrong credentials", self._wrong_credentials),
            ("clock", self._clock),
        ]
        try:
            for number, (name, check) in enumerate(checks):
                finding = _finding(name, check)
                yield finding
                if number == 0 and not finding.ok:
                    return
        finally:
            # What the server would not let us write it need not let us remove.
            with suppress(StoreError):
                for entry in list(self.store.list(self._folder)):
                    self.store.delete(entry.path)

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def _request(self, method: str, name: str, client: Any = None, **arguments: Any) -> Any:
        """One request for the object `name`, by the store's own client or another; returns the parsed response."""
        store, key = self.store, self.store.key(self._path(name))
        fs = store.fs if client is None else client
        return store.call(self._path(name), lambda: fs.call_s3(method, Bucket=store.bucket, Key=key, **arguments))

    def _write_and_read(self) -> str:
        data = secrets.token_bytes(1000)
        started = time.monotonic()
        self.store.put(self._path("object"), data)
        if self.store.get(self._path("object")) != data:
            raise _BrokenPromiseError("what is read is not what was written, so nothing can be kept here")
        return f"1000 bytes there and back in {1000 * (time.monotonic() - started):.0f} ms"

    def _create_only(self) -> str:
        winners = self._race("created", {"IfNoneMatch": "*"})
        if winners != 1:
            raise _BrokenPromiseError(
                f"{winners} of {NUM_WRITERS} create-only writes of one object succeeded, so two runs could overwrite "
                f"each other"
            )
        return f"1 winner among {NUM_WRITERS} writers"

    def _compare_and_swap(self) -> str:
        etag = self._request("put_object", "swapped", Body=b"first")["ETag"]
        winners = self._race("swapped", {"IfMatch": etag})
        if winners != 1:
            raise _BrokenPromiseError(
                f"{winners} of {NUM_WRITERS} overwrites of one version succeeded, so a lease would exclude nobody"
            )
        return f"1 winner among {NUM_WRITERS} writers"

    def _race(self, name: str, condition: dict[str, str]) -> int:
        def write(number: int) -> bool:
            try:
                self._request("put_object", name, Body=f"writer {number}".encode(), **condition)
            except ConditionFailedError:
                return False
            return True

        with ThreadPoolExecutor(NUM_WRITERS) as pool:
            return sum(pool.map(write, range(NUM_WRITERS)))

    def _ranges(self) -> str:
        data = secrets.token_bytes(100_000)
        self.store.put(self._path("ranged"), data)
        where = f"{self.store.bucket}/{self.store.key(self._path('ranged'))}"
        for start, end in ((0, 1), (1234, 56_789), (99_990, 100_000)):
            read = self._bytes(where, start, end)
            if read != data[start:end]:
                raise _BrokenPromiseError(
                    f"bytes {start} to {end} were asked for and {len(read)} others came, so a logit store would be "
                    f"misread"
                )
        return "first, middle and last bytes as asked for"

    def _bytes(self, where: str, start: int, end: int) -> bytes:
        fs = self.store.fs
        data: bytes = self.store.call(self._path("ranged"), lambda: fs.cat_file(where, start=start, end=end))
        return data

    def _checksums(self) -> str:
        right, wrong = b"what was meant", b"what went out.."
        digest = base64.b64encode(hashlib.sha256(right).digest()).decode()
        self._request("put_object", "summed", Body=right, ChecksumSHA256=digest)
        try:
            self._request("put_object", "summed", Body=wrong, ChecksumSHA256=digest)
        except StoreError as error:
            if status(error) != BAD_REQUEST:
                raise
        else:
            raise _BrokenPromiseError(
                "bytes with another SHA-256 than the request says were taken, so damage on the way would be stored"
            )
        if self.store.get(self._path("summed")) != right:
            raise _BrokenPromiseError("an upload that was refused for its checksum replaced the object all the same")
        return "bytes that do not fit their SHA-256 are refused"

    def _list_after_write(self) -> str:
        names = {self._path(f"listed/{number:03d}") for number in range(12)}
        for name in sorted(names):
            self.store.put(name, b"x")
            if name not in {entry.path for entry in self.store.list(self._path("listed"))}:
                raise _BrokenPromiseError(
                    f"{self.store.locate(name)} was not listed after it was written, so finished shards would be made "
                    f"again"
                )
        self.store.delete(min(names))
        if {entry.path for entry in self.store.list(self._path("listed"))} != names - {min(names)}:
            raise _BrokenPromiseError("an object that was deleted is still listed")
        return f"{len(names)} objects, each listed at once"

    def _multipart(self) -> str:
        parts = [secrets.token_bytes(PART_BYTES), secrets.token_bytes(1000)]
        with self._upload("large") as upload:
            done = []
            for number, part in enumerate(parts, 1):
                sent = self._request("upload_part", "large", UploadId=upload, PartNumber=number, Body=part)
                done.append({"PartNumber": number, "ETag": sent["ETag"]})
            if self.store.exists(self._path("large")):
                raise _BrokenPromiseError("an object in parts is there before it is complete: half of it could be read")
            self._request("complete_multipart_upload", "large", UploadId=upload, MultipartUpload={"Parts": done})
        if self.store.get(self._path("large")) != b"".join(parts):
            raise _BrokenPromiseError("an object in parts is read back with other bytes")
        with self._upload("aborted") as upload:
            self._request("abort_multipart_upload", "aborted", UploadId=upload)
        if self.store.exists(self._path("aborted")):
            raise _BrokenPromiseError("an upload that was given up left an object")
        return f"{len(parts)} parts; nothing is seen before the last"

    @contextmanager
    def _upload(self, name: str) -> Iterator[str]:
        """An upload in parts, whose room is free again however the block ends: nothing lists what is left of one."""
        upload = str(self._request("create_multipart_upload", name)["UploadId"])
        try:
            yield upload
        except BaseException:
            with suppress(StoreError):
                self._request("abort_multipart_upload", name, UploadId=upload)
            raise

    def _wrong_credentials(self) -> str:
        requests: list[tuple[str, str, str, dict[str, Any]]] = [
            ("read", "get_object", "object", {}),
            ("write", "put_object", "strange", {"Body": b"strange"}),
        ]
        for who, client in strangers().items():
            for verb, method, name, arguments in requests:
                try:
                    self._request(method, name, client, **arguments)
                except StoreError as error:
                    if not is_denied(error):
                        raise
                else:
                    raise _BrokenPromiseError(f"a {verb} with {who} was served, so anybody can {verb}")
        return "reads and writes with an unknown key, another secret or no key are refused"

    def _clock(self) -> str:
        def action() -> Any:
            return self.store.fs.call_s3(
                "head_object", Bucket=self.store.bucket, Key=self.store.key(self._path("object"))
            )

        before = time.time()
        response = self.store.call(self._path("object"), action)
        after = time.time()
        server = parsedate_to_datetime(response["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()
        # The header has whole seconds.
        skew = server + 0.5 - (before + after) / 2
        if abs(skew) > MAX_SKEW_SECONDS:
            raise _BrokenPromiseError(
                f"the server's clock is {skew:+.0f} s off this machine's; at 900 s it refuses every request: set the "
                f"clock by NTP"
            )
        written = self.store.read(self._path("object")).modified
        if abs(written - server) > 60:
            raise _BrokenPromiseError(
                f"objects are dated {written - server:+.0f} s off the server's own clock, so leases would not expire "
                f"when they should"
            )
        return f"{skew:+.1f} s from this machine's"


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except (_BrokenPromiseError, StoreError) as error:
        return Finding(name, False, str(error))
