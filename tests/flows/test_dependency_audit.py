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


@pytest.mark.parametrize(("flaws", "code"), [([], 0), ([{"id": "PYSEC-1", "fix_versions": ["2"]}], 1)])
def test_what_the_service_says_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flaws: list[object], code: int
) -> None:
    answer = json.dumps({"dependencies": [{"name": "a", "version": "1", "vulns": flaws}]})
    monkeypatch.setattr(
        dependency_audit.subprocess, "run", lambda *_a, **_n: subprocess.CompletedProcess([], code, answer, "")
    )
    assert main([]) == code
    said = capsys.readouterr().out
    assert ("a 1: PYSEC-1, mended in 2" in said) == bool(flaws)
    assert said.endswith(f"{LOCKED}: {len(flaws)} known vulnerabilities\n")


def test_every_locked_package_has_one_version() -> None:
    lines = [line for line in LOCKED.read_text().splitlines() if line and not line.startswith("#")]
    assert all("==" in line for line in lines)
