"""Checkpoints: the newest whole one is resumed, whichever attempt wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.checkpoint import CheckpointFolder
from tasks.artifacts.store import Store

INPUTS = {"student": "5" * 64}


@pytest.fixture
def artifact(store: Store) -> Artifact:
    return Artifact(store, "artifacts/distill/a-0123456789abcdef")


def save(folder: CheckpointFolder, tmp_path: Path, step: int, keep: int = 9) -> None:
    source = tmp_path / f"source-{folder.attempt}-{step}"
    (source / "state").mkdir(parents=True)
    (source / "state" / "weights").write_bytes(b"weights of step %d" % step)
    (source / "rng").write_bytes(b"%d" % step)
    folder.save(step, source, {"step": step, "row": 16 * step}, keep)


def objects(artifact: Artifact, ending: str = "") -> list[str]:
    prefix = artifact.path("checkpoints/")
    return [
        entry.path.removeprefix(prefix)
        for entry in artifact.store.list(artifact.path("checkpoints"))
        if entry.path.endswith(ending)
    ]


def test_what_was_saved_is_read_back(any_store: Store, tmp_path: Path) -> None:
    folder = CheckpointFolder(Artifact(any_store, "artifacts/distill/a-0123456789abcdef"), "aaaaaaaa", INPUTS)
    assert folder.latest(tmp_path / "resume") is None
    save(folder, tmp_path, 4)
    save(folder, tmp_path, 8)
    newest = folder.latest(tmp_path / "resume")
    assert newest is not None
    assert (newest.step, newest.state) == (8, {"step": 8, "row": 128})
    assert (newest.directory / "state" / "weights").read_bytes() == b"weights of step 8"


def test_steps_are_numbers_not_text(artifact: Artifact, tmp_path: Path) -> None:
    folder = CheckpointFolder(artifact, "aaaaaaaa", INPUTS)
    for step in (100, 9, 20):
        save(folder, tmp_path, step)
    newest = folder.latest(tmp_path / "resume")
    assert newest is not None
    assert newest.step == 100


def _no_list(store: Store, base: str) -> None:
    store.delete(f"{base}.json")


def _half_a_list(store: Store, base: str) -> None:
    store.put(f"{base}.json", store.get(f"{base}.json")[:50])


def _empty_list(store: Store, base: str) -> None:
    store.put(f"{base}.json", b"")


def _missing_file(store: Store, base: str) -> None:
    store.delete(f"{base}/state/weights")


def _short_file(store: Store, base: str) -> None:
    store.put(f"{base}/state/weights", b"weights")


def _flipped_byte(store: Store, base: str) -> None:
    store.put(f"{base}/rng", b"9")


@pytest.mark.parametrize("tear", [_no_list, _half_a_list, _empty_list, _missing_file, _short_file, _flipped_byte])
def test_a_torn_newest_falls_back_to_the_one_before(artifact: Artifact, tmp_path: Path, tear: object) -> None:
    folder = CheckpointFolder(artifact, "aaaaaaaa", INPUTS)
    for step in (4, 8, 12):
        save(folder, tmp_path, step)
    assert callable(tear)
    tear(artifact.store, artifact.path("checkpoints/step-12-aaaaaaaa"))
    second = CheckpointFolder(artifact, "bbbbbbbb", INPUTS)
    newest = second.latest(tmp_path / "resume")
    assert newest is not None
    assert newest.step == 8
    assert list((tmp_path / "resume").iterdir()) == [newest.directory], "the damaged one takes no room"
    assert (newest.directory / "state" / "weights").read_bytes() == b"weights of step 8"


def test_all_torn_starts_from_the_beginning(artifact: Artifact, tmp_path: Path) -> None:
    folder = CheckpointFolder(artifact, "aaaaaaaa", INPUTS)
    save(folder, tmp_path, 4)
    _missing_file(artifact.store, artifact.path("checkpoints/step-4-aaaaaaaa"))
    assert folder.latest(tmp_path / "resume") is None


def test_only_the_newest_are_kept(artifact: Artifact, tmp_path: Path) -> None:
    folder = CheckpointFolder(artifact, "aaaaaaaa", INPUTS)
    for step in (4, 8, 12):
        save(folder, tmp_path, step, keep=2)
    assert objects(artifact, ".json") == ["step-12-aaaaaaaa.json", "step-8-aaaaaaaa.json"]
    assert not [name for name in objects(artifact) if name.startswith("step-4-")], "no files of the removed one stay"


def test_another_attempts_checkpoint_is_resumed_and_counted(artifact: Artifact, tmp_path: Path) -> None:
    save(CheckpointFolder(artifact, "aaaaaaaa", INPUTS), tmp_path, 4)
    second = CheckpointFolder(artifact, "bbbbbbbb", INPUTS)
    newest = second.latest(tmp_path / "resume")
    assert newest is not None
    assert newest.step == 4
    save(second, tmp_path, 8, keep=1)
    assert objects(artifact, ".json") == ["step-8-bbbbbbbb.json"]


def test_what_an_upload_left_without_a_list_goes_with_the_next_save(artifact: Artifact, tmp_path: Path) -> None:
    first, second = (CheckpointFolder(artifact, attempt * 8, INPUTS) for attempt in "ab")
    for step in (4, 8):
        save(first, tmp_path, step)
    for torn in ("step-12-aaaaaaaa", "step-12-bbbbbbbb", "step-16-aaaaaaaa"):
        artifact.store.put(artifact.path(f"checkpoints/{torn}/state/weights"), b"we")
    assert second.latest(tmp_path / "resume") is not None
    assert len(objects(artifact)) == 9, "reading removes nothing"
    save(second, tmp_path, 16)
    kept = {name.partition("/")[0].removesuffix(".json") for name in objects(artifact)}
    assert kept == {"step-4-aaaaaaaa", "step-8-aaaaaaaa", "step-16-bbbbbbbb"}
    assert len(objects(artifact)) == 9, "two files and a list each"


def test_another_key_has_other_checkpoints(artifact: Artifact, tmp_path: Path) -> None:
    save(CheckpointFolder(artifact, "aaaaaaaa", INPUTS), tmp_path, 4)
    edited = Artifact(artifact.store, "artifacts/distill/a-fedcba9876543210")
    assert CheckpointFolder(edited, "aaaaaaaa", INPUTS).latest(tmp_path / "resume") is None


def test_a_finished_artifact_keeps_none(artifact: Artifact, tmp_path: Path) -> None:
    folder = CheckpointFolder(artifact, "aaaaaaaa", INPUTS)
    save(folder, tmp_path, 4)
    folder.clear()
    assert objects(artifact) == []


def test_a_checkpoint_of_other_inputs_is_never_resumed(any_store: Store, tmp_path: Path) -> None:
    artifact = Artifact(any_store, "artifacts/distill/a-0123456789abcdef")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "weights").write_bytes(b"1")
    CheckpointFolder(artifact, "aaaaaaaa", INPUTS).save(7, tmp_path / "state", {}, keep=2)
    assert CheckpointFolder(artifact, "bbbbbbbb", {"student": "6" * 64}).latest(tmp_path / "other") is None
    found = CheckpointFolder(artifact, "cccccccc", INPUTS).latest(tmp_path / "same")
    assert found is not None
    assert found.step == 7
