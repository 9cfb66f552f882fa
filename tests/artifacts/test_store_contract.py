"""What the protocol needs of a store, on local disk and on a real S3 server with credentials."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tasks.artifacts import s3_store
from tasks.artifacts.errors import (
    BadInputError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectMissingError,
    StoreError,
)
from tasks.artifacts.probe import require_conditional_writes
from tasks.artifacts.s3_store import S3Store
from tasks.artifacts.store import Store, open_store
from tests.bench.wire import CountingProxy
from tests.seaweed import BUCKET, SeaweedServer


def test_what_is_put_is_read_back_and_listed(any_store: Store, tmp_path: Path) -> None:
    any_store.put("a/b/one", b"1")
    any_store.put("a/b/one", b"22")
    (tmp_path / "file").write_bytes(b"333")
    any_store.upload(tmp_path / "file", "a/two")
    any_store.put("ab/other", b"x")
    assert any_store.get("a/b/one") == b"22"
    assert [(entry.path, entry.size) for entry in any_store.list("a")] == [("a/b/one", 2), ("a/two", 3)]
    any_store.download("a/two", tmp_path / "deep" / "copy")
    assert (tmp_path / "deep" / "copy").read_bytes() == b"333"
    any_store.delete("a/two")
    any_store.delete("a/two")
    assert not any_store.exists("a/two")
    assert list(any_store.list("nothing/here")) == []


def test_children_are_what_stands_directly_below_a_folder(any_store: Store) -> None:
    for path in ("tree/leaf", "tree/one/a", "tree/one/b", "tree/two/deep/c", "trees/other"):
        any_store.put(path, b"1")
    assert any_store.children("tree") == {"leaf", "one", "two"}
    assert any_store.children("tree/one") == {"a", "b"}
    assert any_store.children("tree/leaf") == any_store.children("nothing/here") == set()


def test_more_children_than_a_server_lists_at_once_are_all_told(
    seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    store, names = S3Store(f"s3://{BUCKET}/listed"), {f"{number:04d}" for number in range(1001)}
    wide = store.key("wide")
    store.fs.pipe({f"{BUCKET}/{wide}/{name}": b"1" for name in names})
    # As some tools make folders.
    store.fs.call_s3("put_object", Bucket=BUCKET, Key=f"{wide}/empty/", Body=b"")
    assert store.children("wide") == names | {"empty"}
    assert {entry.path for entry in store.list("wide")} == {f"wide/{name}" for name in names}


def test_a_missing_object_is_named(any_store: Store, tmp_path: Path) -> None:
    for action in (any_store.get, any_store.read, lambda path: any_store.download(path, tmp_path / "x")):
        with pytest.raises(ObjectMissingError, match="no/such"):
            action("no/such")


def test_many_objects_come_in_order_and_one_that_is_missing_is_named(
    any_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of the S3 store: more than it asks for at a time.
    monkeypatch.setattr(s3_store, "_READ_AHEAD", 7)
    paths = [f"many/{number:02d}" for number in range(20)]
    for path in paths:
        any_store.put(path, path.encode())
    assert [data.decode() for data in any_store.get_all(paths)] == paths
    assert list(any_store.get_all(["many/07", "many/03", "many/07"])) == [b"many/07", b"many/03", b"many/07"]
    assert list(any_store.get_all([])) == []
    with pytest.raises(ObjectMissingError, match="no/such"):
        list(any_store.get_all([*paths, "no/such"]))


def test_many_objects_on_s3_are_asked_for_at_the_same_time(
    seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = CountingProxy(seaweed.ports[0], delay_seconds=0.2)
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    S3Store(f"s3://{BUCKET}/together").put("small", b"1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", far.endpoint)
    store, count = S3Store(f"s3://{BUCKET}/together"), 100
    store.get("small")
    far.traffic.take()
    start = time.monotonic()
    assert list(store.get_all(["small"] * count)) == [b"1"] * count
    assert time.monotonic() - start < 0.2 * count / 2
    # One each: none for its size.
    assert far.traffic.take()[0] == count
    far.close()


def test_create_has_one_winner_among_racing_writers(any_store: Store) -> None:
    results: list[str] = []
    barrier = threading.Barrier(6)

    def write(name: int) -> None:
        barrier.wait()
        try:
            any_store.create("race", f"writer {name}".encode())
            results.append(f"writer {name}")
        except ObjectExistsError:
            results.append("lost")

    threads = [threading.Thread(target=write, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [result for result in results if result != "lost"]
    assert len(results) == 6
    assert winners == [any_store.get("race").decode()]


def test_a_repeated_create_with_the_same_bytes_is_a_lost_response(any_store: Store) -> None:
    etag = any_store.create("once", b"mine")
    assert any_store.create("once", b"mine") == etag
    with pytest.raises(ObjectExistsError, match="once"):
        any_store.create("once", b"other")


def test_replace_needs_the_version_that_was_read(any_store: Store) -> None:
    etag = any_store.create("lease", b"1")
    newer = any_store.replace("lease", b"2", etag)
    assert any_store.read("lease").etag == newer
    with pytest.raises(ObjectChangedError, match="lease"):
        any_store.replace("lease", b"3", etag)
    any_store.delete("lease")
    with pytest.raises(ObjectChangedError, match="lease"):
        any_store.replace("lease", b"3", newer)


def test_modification_times_are_told_by_the_clock_that_now_tells(any_store: Store) -> None:
    any_store.put("clock", b"x")
    # S3 counts whole seconds.
    assert -1.5 <= any_store.now() - any_store.read("clock").modified <= 5


def test_the_probe_accepts_both_backends_and_leaves_nothing(any_store: Store) -> None:
    require_conditional_writes(any_store)
    assert list(any_store.list("probe")) == []


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "a//b", "a/./b", "a b", "", "ä"])
def test_names_cannot_leave_the_root(any_store: Store, path: str) -> None:
    with pytest.raises(BadInputError, match="object name"):
        any_store.put(path, b"x")


class _IgnoresConditions:
    """A server that accepts If-None-Match and overwrites all the same, as some gateways do."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.uri = "s3://careless"

    def create(self, path: str, data: bytes) -> str:
        self.store.put(path, data)
        return "etag"

    def delete(self, path: str) -> None:
        self.store.delete(path)


def test_a_store_without_conditional_writes_is_refused(store: Store) -> None:
    with pytest.raises(BadInputError, match="s3://careless ignores If-None-Match"):
        require_conditional_writes(_IgnoresConditions(store))  # type: ignore[arg-type]


def test_wrong_credentials_are_one_sentence(seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**seaweed.environment, "AWS_SECRET_ACCESS_KEY": "wrong"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match=r"denied.*check the credentials"):
        open_store(f"s3://{BUCKET}/x").put("a", b"1")


def test_an_unreachable_server_is_worth_a_retry(monkeypatch: pytest.MonkeyPatch, seaweed: SeaweedServer) -> None:
    for name, value in {**seaweed.environment, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    store = open_store(f"s3://{BUCKET}/x")
    store.fs.retries = 1
    with pytest.raises(StoreError, match="does not answer") as caught:
        store.get("a")
    assert caught.value.retryable


def test_a_full_disk_is_one_sentence_and_leaves_no_half_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    store.put("a/kept", b"1")

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match=r"is full.*free some space"):
        store.put("a/new", b"2")
    monkeypatch.undo()
    assert [entry.path for entry in store.list("a")] == ["a/kept"]
    assert not any(path.name.startswith(".tmp") for path in Path(store.uri).rglob("*"))
