"""A run from the command line brings its own Prefect server, unless the user has named one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.prefect_server import is_configured, losing_the_server, start_own_server
from tasks.artifacts.errors import BadInputError, MediusError


@pytest.fixture(autouse=True)
def _unconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE"):
        monkeypatch.delenv(name, raising=False)


def test_a_server_that_the_user_has_named_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_configured(tmp_path)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    wait_until_up = start_own_server(tmp_path)
    # What Prefect would read when it is imported; here it may have been long before.
    named = temporary_settings({PREFECT_API_URL: os.environ["PREFECT_API_URL"]})
    with named, pytest.raises(MediusError, match=r"server at http://127\.0\.0\.1:9/api does not answer"):
        wait_until_up()
    assert os.environ["PREFECT_API_URL"] == "http://127.0.0.1:9/api"
    assert list(tmp_path.iterdir()) == [], "nothing is started"


def test_a_profile_that_the_user_has_named_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_PROFILE", "team")
    start_own_server(tmp_path)()
    assert "PREFECT_API_URL" not in os.environ
    assert list(tmp_path.iterdir()) == [], "nothing is started"


def test_a_home_with_profiles_is_the_users(tmp_path: Path) -> None:
    (tmp_path / "profiles.toml").write_text('active = "team"\n')
    assert is_configured(tmp_path)


def test_a_server_that_cannot_start_is_one_sentence_before_any_work(tmp_path: Path) -> None:
    result = subprocess.run(
        [Path(sys.executable).with_name("medius"), "run", "micro", "--store", str(tmp_path / "store")],
        cwd=tmp_path,
        env={**os.environ, "PREFECT_API_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:////nonexistent/folder/x.db"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 1
    (sentence,) = result.stderr.splitlines()
    assert sentence.startswith("medius: the Prefect server of this run ended with exit code")
    log = sentence.partition("its log is ")[2].partition(":")[0]
    assert "nonexistent" in Path(log).read_text() or "unable to open database" in Path(log).read_text()
    assert not (tmp_path / "store").exists()


def test_a_server_that_is_lost_on_the_way_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example:4200/api")
    lost = r"server at http://prefect\.example:4200/api was lost \(refused\); .* run the same command again$"
    with pytest.raises(MediusError, match=lost), losing_the_server():
        raise httpx.ConnectError("refused")
    with pytest.raises(MediusError, match=lost), losing_the_server():
        # What Prefect makes of it where a flow begins.
        raise RuntimeError("Failed to reach API") from httpx.ConnectError("refused")
    with pytest.raises(BadInputError), losing_the_server():
        raise BadInputError("not the server's doing") from httpx.ConnectError("of another server")
    with pytest.raises(KeyError), losing_the_server():
        raise KeyError("a defect")
