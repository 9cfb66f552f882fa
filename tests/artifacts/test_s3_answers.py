"""What the answers of an S3 server mean to a run: worth a retry, a user's mistake, or nothing there."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import zarr
from botocore.exceptions import ClientError
from botocore.utils import parse_timestamp
from s3fs.errors import translate_boto_error

from tasks.artifacts.errors import BadInputError, MediusError, ObjectMissingError, StoreError, TransientStoreError
from tasks.artifacts.s3_session import answer_time
from tasks.artifacts.s3_store import ConditionFailedError, S3Store
from tasks.artifacts.store import open_store
from tests.seaweed import SeaweedServer


def answer(code: str) -> NoReturn:
    """Fails as s3fs does when the server answers with this code."""
    raise translate_boto_error(ClientError({"Error": {"Code": code, "Message": "told by the server"}}, "PutObject"))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("IncompleteBody", TransientStoreError),
        ("BadDigest", TransientStoreError),
        ("NoSuchUpload", TransientStoreError),
        ("SlowDown", TransientStoreError),
        ("InternalError", TransientStoreError),
        ("XAmzContentSHA256Mismatch", TransientStoreError),
        ("NoSuchBucket", BadInputError),
        ("NoSuchKey", ObjectMissingError),
        ("AccessDenied", StoreError),
        ("EntityTooLarge", StoreError),
        ("PreconditionFailed", ConditionFailedError),
        ("ConditionalRequestConflict", ConditionFailedError),
    ],
)
def test_each_answer_means_what_it_says(code: str, kind: type[Exception]) -> None:
    store = S3Store("s3://bucket/prefix")
    with pytest.raises(kind) as caught:
        store.call("a/b", lambda: answer(code))
    if isinstance(caught.value, MediusError):
        assert "bucket/prefix/a/b" in str(caught.value)
        assert caught.value.retryable == (kind is TransientStoreError)


def test_a_wrong_clock_is_not_told_as_wrong_credentials() -> None:
    with pytest.raises(StoreError, match=r"this machine's clock is off .* set the clock by NTP"):
        S3Store("s3://bucket/prefix").call("a/b", lambda: answer("RequestTimeTooSkewed"))


def test_a_mistyped_bucket_is_no_empty_store(seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    store = open_store("s3://mediums/store")
    for act in (lambda: store.get("a"), lambda: list(store.list("artifacts"))):
        with pytest.raises(BadInputError, match="there is no bucket mediums") as caught:
            act()
        assert isinstance(caught.value, StoreError)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-29T02:20:56Z",
        "2026-11-29T02:20:56.123Z",
        "2026-11-29T02:20:56.123456789Z",
        "2026-11-29T03:20:56+01:00",
        "Sun, 29 Nov 2026 02:20:56 GMT",
        "Sunday, 29-Nov-26 02:20:56 GMT",
        "2026-11-29",
        "2026-11-29T02:20:56",
        "1795918856",
        "1795918856.5",
    ],
)
def test_times_are_those_of_botocores_own_reader(text: str) -> None:
    assert answer_time(text) == parse_timestamp(text)


def test_what_is_no_time_is_an_error() -> None:
    with pytest.raises(ValueError, match="yesterday"):
        answer_time("yesterday")


def test_arrays_that_the_server_does_not_give_are_worth_a_retry(
    seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    zarr.open_group(tmp_path / "group", mode="w").create_array("a", data=np.arange(5), chunks=(5,))
    store = S3Store("s3://medius/arrays")
    for file in (path for path in (tmp_path / "group").rglob("*") if path.is_file()):
        store.upload(file, f"group/{file.relative_to(tmp_path / 'group')}")
    array = zarr.open_group(store.zarr_store("group"), mode="r")["a"]
    assert isinstance(array, zarr.Array)
    assert np.array_equal(array[:], np.arange(5))
    with pytest.raises(FileNotFoundError):
        zarr.open_group(store.zarr_store("no-group"), mode="r")

    async def storm(*_arguments: object, **_named: object) -> NoReturn:
        answer("SlowDown")

    monkeypatch.setattr(store._zarr_fs, "_cat_file", storm)
    for read in (lambda: array[:], lambda: zarr.open_group(store.zarr_store("group"), mode="r")):
        with pytest.raises(TransientStoreError, match=r"s3://medius/arrays/group: the object store does not answer"):
            read()
