from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from flows.cli import main
from flows.profiles import CONFIGS


@dataclass(frozen=True)
class Said:
    """What a command returned and printed."""

    code: int
    out: str
    err: str


Medius = Callable[..., Said]


@pytest.fixture
def medius(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Medius:
    """medius("plan", "micro", …) runs the command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["medius", *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return run


@pytest.fixture
def micro(tmp_path: Path) -> Callable[..., Path]:
    """micro({"a.b": value}) writes a copy of the profile micro with changes, and returns its path."""

    def write(changes: dict[str, object] | None = None, remove: str | None = None) -> Path:
        document = yaml.safe_load((CONFIGS / "micro.yaml").read_text())
        for dotted, value in (changes or {}).items():
            *parents, last = dotted.split(".")
            place = document
            for name in parents:
                place = place[name]
            place[last] = value
        if remove is not None:
            *parents, last = remove.split(".")
            place = document
            for name in parents:
                place = place[name]
            del place[last]
        path = tmp_path / "edited.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return path

    return write
