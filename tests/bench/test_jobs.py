"""A stage's job without a pipeline, as the measurements start it."""

from __future__ import annotations

from pathlib import Path

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.store import open_store
from tests.bench.jobs import commit_folder


def test_a_folder_from_outside_of_the_store_is_an_input_that_can_be_fetched(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\0" * 9)
    store = open_store(str(tmp_path / "store"))
    artifact = Artifact(store, commit_folder(store, "teacher", folder).directory)
    manifest = artifact.manifest()
    assert manifest is not None
    fetched = artifact.fetch(manifest, tmp_path / "inputs")
    assert {file.name: file.read_bytes() for file in fetched.iterdir()} == {
        "config.json": b"{}",
        "model.safetensors": b"\0" * 9,
    }
