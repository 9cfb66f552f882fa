"""A run that cannot fit is refused before it begins; one whose sizes are not known is not."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest

from flows import room
from flows.dag import build
from flows.opened import open_run
from flows.profiles import load_profile
from flows.room import require_room
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.runs import all_runs
from tasks.artifacts.store import open_store

Usage = namedtuple("Usage", "total used free")


def test_too_little_room_is_one_sentence_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: Usage(10, 10, 1000))
    profile = load_profile("micro", store=str(tmp_path / "store"))
    with (
        pytest.raises(BadInputError, match=rf"forecast to write .* on the disk of {tmp_path}\S*, which has 1 kB free"),
        open_run(profile, build(profile)),
    ):
        pytest.fail("it began")
    assert all_runs(open_store(profile.store)) == []


def test_room_enough_passes(tmp_path: Path) -> None:
    profile = load_profile("micro", store=str(tmp_path / "store"))
    require_room(build(profile), open_store(profile.store), 2, tmp_path / "scratch")


def test_what_cannot_be_forecast_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_arguments: object) -> None:
        raise BadInputError("no shape")

    monkeypatch.setattr(room, "cost_of", unknown)
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: Usage(10, 10, 0))
    require_room([], open_store(str(tmp_path)), 2, tmp_path)
