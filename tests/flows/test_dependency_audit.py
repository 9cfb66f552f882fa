"""`make audit` where its service answers, and where it does not."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from flows import dependency_audit
from flows.dependency_audit import LOCKED, main


def test_a_service_that_cannot_be_reached_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real pip-audit, with a proxy at which nobody listens."""
    locked = tmp_path / "locked.txt"
    locked.write_text("pyyaml==6.0\n")
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    assert main([str(locked)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"{locked} was not audited, as the vulnerability service could not be asked")
    assert len(said.err.splitlines()) == 1


def test_what_the_service_says_of_all_locked_files_is_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flaw = {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}
    only_of_an_image = {"name": "b", "version": "3", "vulns": [{"id": "PYSEC-2", "fix_versions": []}]}
    answers: dict[Path, list[object]] = {LOCKED[0]: [flaw], LOCKED[1]: [flaw, only_of_an_image]}
    asked: list[Path] = []

    def run(command: list[str], **_named: object) -> subprocess.CompletedProcess[str]:
        asked.append(Path(command[-1]))
        answer = {"dependencies": answers.get(asked[-1], [])}
        return subprocess.CompletedProcess(command, 1, json.dumps(answer), "")

    monkeypatch.setattr(dependency_audit.subprocess, "run", run)
    assert main([]) == 1
    infra = Path(__file__).parents[2] / "infra"
    assert sorted(asked) == sorted([infra / "constraints.txt", *(infra / "locks").glob("*.txt")])
    *found, total = capsys.readouterr().out.splitlines()
    assert found == ["a 1: PYSEC-1, mended in 2", "b 3: PYSEC-2, mended in no version"]
    assert total.endswith(": 2 known vulnerabilities")

    answers.clear()
    assert main([]) == 0
    assert capsys.readouterr().out.endswith(": 0 known vulnerabilities\n")


def test_every_locked_package_has_one_version() -> None:
    lines = [line for line in LOCKED[0].read_text().splitlines() if line and not line.startswith("#")]
    assert all("==" in line for line in lines)
