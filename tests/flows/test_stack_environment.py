"""What reaches a stack of the shell that starts it, and what a shell takes from the file that it sources."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from flows.prefect_server import RUN_SETTINGS
from flows.stack_environment import client_environment, keep_password, password, service_environment
from flows.stack_services import Ports
from tasks.artifacts.errors import BadInputError

ELSEWHERE = {
    "PREFECT_API_DATABASE_CONNECTION_URL": "postgresql+asyncpg://team",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://team",
    "PREFECT_API_URL": "https://team.example/api",
    "PREFECT_API_KEY": "of-the-team",
    "PREFECT_API_AUTH_STRING": "team:password",
    "PREFECT_PROFILE": "team",
    "AWS_ENDPOINT_URL_S3": "https://s3.example",
    "AWS_SESSION_TOKEN": "of-a-session",
    "AWS_PROFILE": "team",
    "FSSPEC_S3_ENDPOINT_URL": "https://s3.example",
}


@pytest.fixture(autouse=True)
def _shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("AWS_", "PREFECT_")):
            monkeypatch.delenv(name)


def test_no_setting_of_another_server_reaches_the_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ELSEWHERE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "DEBUG")
    monkeypatch.setenv("HF_HOME", "/models")
    client = client_environment(tmp_path, Ports())
    got = service_environment(client, tmp_path / "prefect", "token")
    assert not set(got.values()) & set(ELSEWHERE.values())
    assert {name for name in got if name.startswith("AWS_")} == {name for name in client if name.startswith("AWS_")}
    assert got["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
    assert got["PREFECT_LOGGING_LEVEL"] == "DEBUG"
    assert got["HF_HOME"] == "/models"
    assert RUN_SETTINGS.items() <= got.items(), "a flow run of the stack outlives its server as long as others do"


def test_a_shell_that_sources_the_file_is_led_nowhere_else(tmp_path: Path) -> None:
    client = client_environment(tmp_path, Ports())
    shell = subprocess.run(
        ["sh", "-c", f". {tmp_path / 'environment'}; env"],
        env={"PATH": os.environ["PATH"], **ELSEWHERE}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    got = dict(line.partition("=")[::2] for line in shell.stdout.splitlines())
    assert {name: value for name, value in got.items() if name.startswith(("AWS_", "PREFECT_", "FSSPEC_"))} == {
        name: value for name, value in client.items() if name.startswith(("AWS_", "PREFECT_"))
    }


def test_the_secret_is_for_its_owner_and_stays(tmp_path: Path) -> None:
    before = client_environment(tmp_path, Ports())
    assert client_environment(tmp_path, Ports()) == before
    assert len(before["AWS_SECRET_ACCESS_KEY"]) >= 40
    for name in ("environment", "s3-secret"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_a_password_is_remembered_and_reaches_server_and_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "medius:secret")
    keep_password(tmp_path, running=False)
    monkeypatch.delenv("PREFECT_SERVER_API_AUTH_STRING")
    keep_password(tmp_path, running=False)
    assert stat.S_IMODE((tmp_path / "prefect-password").stat().st_mode) == 0o600
    client = client_environment(tmp_path, Ports())
    assert client["PREFECT_API_AUTH_STRING"] == "medius:secret"
    got = service_environment(client, tmp_path / "prefect", "token")
    assert got["PREFECT_SERVER_API_AUTH_STRING"] == "medius:secret"


def test_a_password_changes_only_while_the_server_is_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "medius:secret")
    keep_password(tmp_path, running=False)
    keep_password(tmp_path, running=True)
    for other in ("medius:other", ""):
        monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", other)
        with pytest.raises(BadInputError, match=r'another password .*"medius down" first'):
            keep_password(tmp_path, running=True)
        assert password(tmp_path) == "medius:secret"
    keep_password(tmp_path, running=False)
    assert password(tmp_path) is None, "an empty one takes it away"


def test_a_password_that_prefect_cannot_compare_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "medius:für")
    with pytest.raises(BadInputError, match="use ASCII only"):
        keep_password(tmp_path, running=False)
    assert password(tmp_path) is None
