"""Each fault of the proxy does what it says between the store's own client and a real S3 server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.artifacts.errors import ObjectExistsError, TransientStoreError
from tasks.artifacts.store import Store, open_store
from tests.faults.s3_faults import (
    Storm,
    Truncation,
    in_the_middle_of_an_upload,
    lose_answers,
    refuse_every,
    reset_every,
    slow_down,
)
from tests.faults.s3_proxy import Fault, S3Proxy
from tests.runtime.conftest import wait_for
from tests.seaweed import BUCKET, SeaweedServer

DATA = bytes(range(256)) * 40

Through = Callable[[Fault | None], tuple[Store, S3Proxy]]


@pytest.fixture
def through(server: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Through]:
    """through(fault) opens a store whose client speaks to the server through a proxy."""
    made: list[S3Proxy] = []

    def make(fault: Fault | None) -> tuple[Store, S3Proxy]:
        made.append(S3Proxy(server.endpoint, fault))
        monkeypatch.setenv("AWS_ENDPOINT_URL", made[-1].endpoint)
        return open_store(f"s3://{BUCKET}/proxy"), made[-1]

    yield make
    for proxy in made:
        proxy.close()


def test_without_a_fault_everything_passes(through: Through) -> None:
    store, proxy = through(None)
    store.put("object", DATA)
    assert store.get("object") == DATA
    assert store.exists("object")
    assert not store.exists("other")
    with pytest.raises(ObjectExistsError):
        store.create("object", b"other")
    store.delete("object")
    assert not store.exists("object")
    assert proxy.requests >= 6
    assert not proxy.disturbed


def test_refusals_and_resets_are_repeated_by_the_client(through: Through) -> None:
    for fault in (refuse_every(3), reset_every(3)):
        store, proxy = through(fault)
        for number in range(6):
            store.put(f"object-{number}", DATA)
            assert store.get(f"object-{number}") == DATA
        assert sum(proxy.disturbed.values()) >= 3


def test_a_storm_has_its_time(through: Through) -> None:
    storm = Storm(0.5)
    store, proxy = through(refuse_every(10**9, storm))
    store.put("object", DATA)
    assert proxy.disturbed.total() <= 1, "only request 0"
    storm.begin()
    store.put("object", DATA)
    assert proxy.disturbed.total() >= 2


def test_half_a_body_is_read_again(through: Through, tmp_path: Path) -> None:
    fault = Truncation(2)
    store, _proxy = through(fault)
    store.put("object", DATA)
    for _ in range(4):
        assert store.get("object") == DATA
    store.download("object", tmp_path / "object")
    assert (tmp_path / "object").read_bytes() == DATA
    assert fault.cut >= 3


def test_a_body_that_always_ends_early_is_transient(through: Through) -> None:
    store, _proxy = through(Truncation(1))
    store.put("object", DATA)
    with pytest.raises(TransientStoreError, match="does not answer"):
        store.get("object")


def test_a_create_whose_answer_is_lost_has_won(through: Through) -> None:
    lost: list[str] = []
    store, _proxy = through(lose_answers(lost))
    etag = store.create("manifest.json", DATA)
    assert lost == [f"/{BUCKET}/proxy/manifest.json"]
    with pytest.raises(ObjectExistsError):
        store.create("manifest.json", b"another run's")
    assert store.replace("manifest.json", DATA + b"renewed", etag)
    assert lost == 2 * [f"/{BUCKET}/proxy/manifest.json"]
    assert store.get("manifest.json") == DATA + b"renewed"


def test_slow_is_slow_and_whole(through: Through) -> None:
    store, proxy = through(slow_down(0.01, 1e6))
    store.put("object", DATA)
    assert store.get("object") == DATA
    # It counts an answer after its last byte, which is when the client goes on.
    wait_for(lambda: proxy.disturbed.total() == proxy.requests, 10, "every answer is counted")


def test_a_server_that_goes_in_the_middle_of_an_upload_and_comes_back(through: Through, server: SeaweedServer) -> None:
    happened = threading.Event()

    def gone_and_back() -> None:
        server.kill()
        server.start()
        happened.set()

    store, _proxy = through(in_the_middle_of_an_upload(gone_and_back, 1000, lambda path: path.endswith("/data")))
    store.put("before", DATA)
    store.put("data", DATA)
    # The server takes the repeated request a moment before it has told this process that it is up.
    assert happened.wait(60)
    assert store.get("data") == DATA
    assert store.get("before") == DATA
