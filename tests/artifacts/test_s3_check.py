"""`medius s3-check` finds nothing on a real S3 server, and each broken promise where one is broken."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from tasks.artifacts import s3_check
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.s3_check import Finding, S3Check
from tasks.artifacts.store import open_store
from tests.seaweed import BUCKET, SeaweedServer

CHECKS = [
    "write and read", "If-None-Match", "If-Match", "ranges", "checksums", "list after write", "multipart",
    "wrong credentials", "clock",
]  # fmt: skip


@pytest.fixture
def check(seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> S3Check:
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    return S3Check(f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}")


def failed(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.detail for finding in findings if not finding.ok}


def test_a_real_server_passes_and_nothing_is_left(check: S3Check) -> None:
    findings = list(check.run())
    assert [finding.check for finding in findings] == CHECKS
    assert failed(findings) == {}
    assert list(check.store.list("probe")) == []


def test_wrong_keys_are_told_by_the_first_line_and_nothing_else_is_tried(
    check: S3Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something else")
    [finding] = S3Check(check.store.uri).run()
    assert not finding.ok
    assert "was denied" in finding.detail
    assert "check the credentials" in finding.detail
    assert "something else" not in finding.detail


def test_a_server_that_checks_neither_keys_nor_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
        check = S3Check("s3://bucket/prefix")
        check.store.fs.mkdir("bucket")
        found = failed(list(check.run()))
        assert found["wrong credentials"] == "a read with a key that nobody has was served, so anybody can read"
        assert "damage on the way would be stored" in found["checksums"]
        assert "write and read" not in found
    finally:
        server.stop()


def without_conditions(real: Callable[..., Any]) -> Callable[..., Any]:
    def call(method: str, **arguments: Any) -> Any:
        return real(method, **{key: value for key, value in arguments.items() if key not in {"IfNoneMatch", "IfMatch"}})

    return call


def without_ranges(real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda path, start, end: real(path)


def one_behind(real: Callable[..., Any]) -> Callable[..., Any]:
    def call(method: str, **arguments: Any) -> Any:
        answer = real(method, **arguments)
        # The whole list, not the look by which the server's clock is told.
        if method == "list_objects_v2" and "MaxKeys" not in arguments:
            answer["Contents"] = answer.get("Contents", [])[:-1]
        return answer

    return call


@pytest.mark.parametrize(
    ("method", "fault", "expected"),
    [
        ("call_s3", without_conditions, {"If-None-Match", "If-Match"}),
        ("cat_file", without_ranges, {"ranges"}),
        ("call_s3", one_behind, {"list after write"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_promise_is_found(
    check: S3Check,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    fault: Callable[[Callable[..., Any]], Callable[..., Any]],
    expected: set[str],
) -> None:
    monkeypatch.setattr(check.store.fs, method, fault(getattr(check.store.fs, method)))
    assert set(failed(list(check.run()))) == expected


def test_a_clock_that_is_off_is_told_before_requests_are_refused(
    check: S3Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SlowClock:
        monotonic = staticmethod(s3_check.time.monotonic)

        @staticmethod
        def time() -> float:
            return real() - 600

    real = s3_check.time.time
    monkeypatch.setattr(s3_check, "time", SlowClock)
    found = failed(list(check.run()))
    assert set(found) == {"clock"}
    assert "+600 s off this machine's" in found["clock"] or "+599 s" in found["clock"]


@pytest.mark.parametrize("uri", ["/some/folder", "s3://", "gs://bucket/x"])
def test_what_is_no_place_in_an_object_store_is_refused(uri: str) -> None:
    with pytest.raises(BadInputError, match="is no place in an object store"):
        S3Check(uri)


class Client:
    """Another client of the same server, which may answer otherwise than the server does."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call_s3 = call


def overloaded(*_arguments: Any, **_more: Any) -> Any:
    raise OSError(errno.EBUSY, "Please reduce your request rate.")


def test_only_a_refusal_counts_as_one(check: S3Check, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(s3_check.strangers()) == {"a key that nobody has", "this key and another secret", "no key"}
    own = check.store.fs.call_s3
    monkeypatch.setattr(s3_check, "strangers", lambda: {"this key and another secret": Client(own)})
    detail = failed(list(check.run()))["wrong credentials"]
    assert detail == "a read with this key and another secret was served, so anybody can read"
    monkeypatch.setattr(s3_check, "strangers", lambda: {"no key": Client(overloaded)})
    assert "does not answer" in failed(list(check.run()))["wrong credentials"]


def test_a_reader_that_may_write_is_found(check: S3Check, monkeypatch: pytest.MonkeyPatch) -> None:
    refused, own = s3_check.strangers()["no key"].call_s3, check.store.fs.call_s3

    def call(method: str, **arguments: Any) -> Any:
        return (own if method == "put_object" else refused)(method, **arguments)

    monkeypatch.setattr(s3_check, "strangers", lambda: {"no key": Client(call)})
    assert "a write with no key was served" in failed(list(check.run()))["wrong credentials"]
    assert list(check.store.list("probe")) == []


def test_a_server_that_is_down_refuses_no_checksum(check: S3Check, monkeypatch: pytest.MonkeyPatch) -> None:
    real = check.store.fs.call_s3

    def call(method: str, **arguments: Any) -> Any:
        if "ChecksumSHA256" in arguments and arguments["Body"] == b"what went out..":
            overloaded()
        return real(method, **arguments)

    monkeypatch.setattr(check.store.fs, "call_s3", call)
    assert "does not answer" in failed(list(check.run()))["checksums"]


def test_a_multipart_check_that_fails_leaves_no_upload(check: S3Check, monkeypatch: pytest.MonkeyPatch) -> None:
    real = check.store.fs.call_s3

    def call(method: str, **arguments: Any) -> Any:
        if method == "complete_multipart_upload":
            overloaded()
        return real(method, **arguments)

    monkeypatch.setattr(check.store.fs, "call_s3", call)
    assert "does not answer" in failed(list(check.run()))["multipart"]
    assert list(check.store.unfinished_uploads()) == []


@pytest.mark.parametrize("endpoint", ["127.0.0.1:8333", "localhost", "http://"])
def test_an_endpoint_that_is_no_url_is_one_sentence(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    wanted = r"^AWS_ENDPOINT_URL is no address .*give it as http://HOST:PORT"
    with pytest.raises(BadInputError, match=wanted):
        list(S3Check("s3://bucket/prefix").run())
    store = open_store("s3://bucket/prefix")
    for request in (lambda: store.get("a"), lambda: list(store.list("a")), store.now, lambda: store.exists("a")):
        with pytest.raises(BadInputError, match=wanted):
            request()
