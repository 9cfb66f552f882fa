"""A local disk that fails: one sentence that names it, worth a retry where it may answer later, and no half file."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.disk import sweep
from tasks.artifacts.errors import ObjectMissingError, StoreError
from tasks.artifacts.store import Store
from tests.conftest import ArtifactOf

LONG = "a" * 300
"""A name that no disk takes."""


def failing(number: int) -> object:
    def fail(*_arguments: object, **_named: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    "act",
    [
        lambda store, _file: store.get(LONG),
        lambda store, _file: store.put(LONG, b"x"),
        lambda store, _file: store.create(LONG, b"x"),
        lambda store, _file: store.exists(LONG),
        lambda store, _file: store.delete(LONG),
        lambda store, file: store.upload(file, LONG),
        lambda store, file: store.upload(file.with_name("gone"), "a"),
        lambda store, file: store.download(LONG, file),
        lambda store, file: store.download("there", file / "below a file"),
    ],
    ids=["get", "put", "create", "exists", "delete", "upload", "upload of nothing", "download", "download to nowhere"],
)
def test_whatever_the_disk_says_is_one_sentence(store: Store, tmp_path: Path, act: object) -> None:
    store.put("there", b"x")
    file = tmp_path / "file"
    file.write_bytes(b"x")
    with pytest.raises(StoreError) as caught:
        act(store, file)  # type: ignore[operator]
    assert not isinstance(caught.value, ObjectMissingError)
    assert str(tmp_path) in str(caught.value)


def test_a_folder_is_no_object(store: Store) -> None:
    store.put("a/b", b"x")
    with pytest.raises(ObjectMissingError, match="a does not exist"):
        store.get("a")


@pytest.mark.parametrize(("number", "retryable"), [(errno.EIO, True), (errno.ESTALE, True), (errno.EMFILE, False)])
def test_a_disk_that_does_not_answer_now_is_worth_a_retry(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int, retryable: bool
) -> None:
    monkeypatch.setattr("os.fsync", failing(number))
    with pytest.raises(StoreError, match=os.strerror(number)) as caught:
        store.put("a", b"1")
    assert caught.value.retryable == retryable


def test_a_full_disk_under_a_fetch_names_the_folder_here_and_leaves_no_part(
    any_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    any_store.put("a/b", b"1234")
    target = tmp_path / "fetched" / "b"
    if any_store.local_path("a/b") is None:
        monkeypatch.setattr(any_store.fs, "get_file", _half_then_full)  # type: ignore[attr-defined]
    else:
        monkeypatch.setattr("shutil.copyfile", _half_then_full)
    with pytest.raises(StoreError, match=rf"the disk of {target.parent} is full; free some space there"):
        any_store.download("a/b", target)
    assert list(target.parent.iterdir()) == []


def _half_then_full(_source: object, target: object, **_named: object) -> None:
    Path(str(target)).write_bytes(b"12")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_download_that_is_cut_leaves_no_part(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("a", b"1234")

    def cut(_source: object, target: object) -> None:
        Path(str(target)).write_bytes(b"12")
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.copyfile", cut)
    with pytest.raises(KeyboardInterrupt):
        store.download("a", tmp_path / "to" / "a")
    assert list((tmp_path / "to").iterdir()) == []


def test_a_fetch_sweeps_what_killed_ones_left(artifact_of: ArtifactOf, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "weights").write_bytes(b"1")
    artifact = artifact_of(made)
    cache = tmp_path / "cache"
    (cache / "deep").mkdir(parents=True)
    old, young = cache / "deep" / ".tmp-old", cache / ".tmp-young"
    for file in (old, young):
        file.touch()
    os.utime(old, (0, time.time() - 90_000))
    manifest = artifact.manifest()
    assert manifest is not None
    Artifact(artifact.store, artifact.directory).fetch(manifest, cache)
    assert (cache / "weights").read_bytes() == b"1"
    assert not old.exists()
    assert young.exists(), "another fetch may be writing it"


def test_a_sweep_of_no_folder_does_nothing(tmp_path: Path) -> None:
    sweep(tmp_path / "none")
    assert not (tmp_path / "none").exists()
