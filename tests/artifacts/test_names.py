"""No name of a profile, and none of a record that somebody else wrote, leads out of its folder."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError, CorruptArtifactError, MediusError
from tasks.artifacts.manifest import ObjectRecord
from tasks.artifacts.store import Store, checked, open_store
from tests.conftest import ArtifactOf

PARTS = ["..", ".", "", "a", "/", "//", "\\", "\0", "~", "%2e%2e", "․․", "‥", "a\u202eb", "é", "\ud800",
         "-", "x" * 300, "C:", "\n"]  # fmt: skip
OUTSIDE = ["../x", "a/../../x", "/x", "a\0b", "a//b", "‥/x", "~/x", "a\\..\\x", ".."]


@pytest.mark.parametrize("seed", range(4))
def test_names_made_of_anything_stay_below_the_root_or_are_refused(tmp_path: Path, seed: int) -> None:
    """1,000 names a seed, put together from what has led out of folders before."""
    draw = random.Random(seed)
    root = tmp_path / "root"
    for _ in range(1000):
        name = draw.choice(["", "/"]).join(draw.choices(PARTS, k=draw.randint(1, 6)))
        try:
            path = checked(name)
        except BadInputError:
            continue
        assert (root / path).resolve().is_relative_to(root)
        assert path.isascii()
        assert path.isprintable()


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_record_cannot_name_a_file_outside(name: str) -> None:
    for fields in ({"name": name, "path": "data/x"}, {"name": "x", "path": name}):
        with pytest.raises(ValidationError, match="object name"):
            ObjectRecord.model_validate({"size": 1, "sha256": "0", **fields})


def test_a_manifest_that_names_a_file_outside_is_not_fetched(artifact_of: ArtifactOf, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "weights").write_bytes(b"1")
    artifact = artifact_of(made)
    path = artifact.path("manifest.json")
    document = json.loads(artifact.store.get(path))
    document["objects"][0]["name"] = "../../stolen"
    artifact.store.put(path, json.dumps(document).encode())
    with pytest.raises(CorruptArtifactError, match="object name"):
        Artifact(artifact.store, artifact.directory).manifest()


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("act", ["get", "put", "create", "replace", "delete", "exists", "list", "upload", "download"])
def test_every_method_of_a_store_refuses(store: Store, tmp_path: Path, name: str, act: str) -> None:
    (tmp_path / "file").write_bytes(b"1")
    arguments = {
        "put": (name, b"1"), "create": (name, b"1"), "replace": (name, b"1", "etag"),
        "upload": (tmp_path / "file", name), "download": (name, tmp_path / "to"),
    }.get(act, (name,))  # fmt: skip
    with pytest.raises(BadInputError, match="object name"):
        list(getattr(store, act)(*arguments) or ())


@pytest.mark.parametrize("link", ["a", "a/b", "a/b/object"])
def test_a_link_in_a_store_leads_nowhere_else(tmp_path: Path, link: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "b").mkdir(parents=True)
    for file in (elsewhere / "object", elsewhere / "b" / "object"):
        file.write_bytes(b"theirs")
    store = open_store(str(tmp_path / "store"))
    place = tmp_path / "store" / link
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(elsewhere / "object" if link.endswith("object") else elsewhere)
    for act in (
        lambda: store.get("a/b/object"),
        lambda: store.put("a/b/object", b"ours"),
        lambda: store.delete("a/b/object"),
    ):
        with pytest.raises(BadInputError, match="leads out of the store"):
            act()
    assert (elsewhere / "object").read_bytes() == b"theirs"
    assert (elsewhere / "b" / "object").read_bytes() == b"theirs"


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "large-disk").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "large-disk")
    store = open_store(str(tmp_path / "store"))
    store.put("a/b", b"1")
    assert (tmp_path / "large-disk" / "a" / "b").read_bytes() == b"1"


def test_the_errors_are_for_users() -> None:
    with pytest.raises(MediusError, match="use letters, digits"):
        checked("a b")
