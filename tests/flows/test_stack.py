"""`medius up` and `medius down`: what they refuse, and (slow) the whole stack with a run in it."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError
from rich.console import Console

from flows import stack as stack_module
from flows import stack_services
from flows.prefect_api import PrefectApi
from flows.stack import Stack
from flows.stack_environment import client_environment
from flows.stack_module import Ran
from flows.stack_processes import marked, wait_until
from flows.stack_services import POOLS, Ports, worker_command
from tasks.artifacts.errors import BadInputError, MediusError
from tests.flows.conftest import Medius
from tests.seaweed import free_ports

MEDIUS = Path(sys.executable).with_name("medius")


def free_block() -> int:
    """A port with which the four after it are free, and all of them plus 10000."""
    ports = set(free_ports(60))
    return next(first for first in sorted(ports) if ports.issuperset(range(first, first + 5)))


def test_a_port_in_use_is_one_sentence_and_nothing_is_started(medius: Medius, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = medius("up", "--prefect-port", str(port), "--s3-port", str(free_block()))
    assert said.code == 2
    assert f"port {port} of 127.0.0.1 is in use by another program" in said.err
    assert "--prefect-port" in said.err
    assert len(said.err.splitlines()) == 1
    state = json.loads((tmp_path / ".medius/up/state.json").read_text())
    assert state["processes"] == []
    assert not marked(state["token"])


def test_the_ports_behind_s3_are_looked_at_too(medius: Medius) -> None:
    first = free_block()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first + 3))
        taken.listen()
        said = medius("up", "--s3-port", str(first))
    assert said.code == 2
    assert f"port {first + 3} of 127.0.0.1 is in use" in said.err
    assert "--s3-port" in said.err


def test_a_port_that_is_none_is_one_sentence(medius: Medius) -> None:
    said = medius("up", "--prefect-port", "80")
    assert said.code == 2
    assert "--prefect-port: Input should be greater than or equal to 1024" in said.err


def test_one_port_for_both_is_one_sentence(medius: Medius) -> None:
    said = medius("up", "--prefect-port", "9003", "--s3-port", "9000")
    assert said.code == 2
    assert "--prefect-port 9003 is one of the ports that S3 takes from 9000 on" in said.err


def test_down_where_nothing_is_up(medius: Medius) -> None:
    said = medius("down")
    assert said.code == 0
    assert "nothing is up here" in said.out


def test_a_block_for_alerts_that_is_not_there_is_told_and_the_stack_comes_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "logs").mkdir()
    sentence = "MEDIUS_ALERT_BLOCK is 'slack-webhook/oncall', and the Prefect server has no such block; make it"
    ran = Ran("made it\n", f"a warning of Prefect's\n{sentence}\n", None)
    monkeypatch.setattr(stack_module, "run_module", lambda *_arguments, **_more: ran)
    said = io.StringIO()
    Stack(Console(file=said, width=40), tmp_path)._deploy({})
    assert said.getvalue() == f"{sentence}\n"


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    first = Stack(Console(), tmp_path)
    with first._locked(), pytest.raises(BadInputError, match="is at work in"):
        Stack(Console(), tmp_path).down()


def test_a_part_that_ends_at_once_is_one_sentence_and_the_rest_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        stack_services, "prefect_command", lambda _ports: [sys.executable, "-c", "raise SystemExit('no database')"]
    )
    stack = Stack(Console(file=(tmp_path / "said").open("w")))
    with pytest.raises(MediusError, match="prefect ended with exit code 1: no database") as raised:
        stack.up(s3_port=free_block(), prefect_port=free_ports(30)[-1])
    assert "prefect.log" in str(raised.value)
    state = stack._state()
    assert state is not None
    assert not state.living()
    assert not marked(state.token)


def test_runs_that_cannot_be_marked_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = io.StringIO()
    stack = Stack(Console(file=said), tmp_path)
    nobody = {**os.environ, "PREFECT_API_URL": f"http://127.0.0.1:{free_ports(1)[0]}/api", "MEDIUS_STORE": "store"}
    stack._mark_dead(nobody, "--settled", "0")
    assert said.getvalue().startswith("runs that ended without a word could not be marked: the Prefect server at http")
    assert 'the next "medius up" tries again' in said.getvalue()


def test_the_command_that_is_printed_works_without_an_activated_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binaries = tmp_path / ".venv" / "bin"
    monkeypatch.setattr(sys, "executable", str(binaries / "python"))
    monkeypatch.chdir(tmp_path)
    assert stack_module._prefect() == ".venv/bin/prefect"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert stack_module._prefect() == str(binaries / "prefect")


def test_one_run_at_a_time_is_taken_for_the_gpus() -> None:
    command = worker_command("gpu")
    assert command[command.index("--limit") + 1] == "1"
    assert "--limit" not in worker_command("medius")


def test_ports_beyond_what_tcp_has_are_refused() -> None:
    with pytest.raises(ValidationError):
        Ports(s3=60_000)


class Running:
    """A stack in a folder, by the installed command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.s3 = free_block()
        self.prefect = free_ports(30)[-1]

    def medius(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [MEDIUS, *arguments], cwd=self.folder, capture_output=True, text=True, check=False, timeout=900
        )

    def up(self) -> subprocess.CompletedProcess[str]:
        return self.medius("up", "--prefect-port", str(self.prefect), "--s3-port", str(self.s3))

    def api(self, path: str, body: dict[str, Any]) -> Any:
        return PrefectApi(f"http://127.0.0.1:{self.prefect}/api").post(path, body)

    def state(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.folder / ".medius/up/state.json").read_text())
        return loaded

    def environment(self) -> dict[str, str]:
        ports = Ports(prefect=self.prefect, s3=self.s3)
        return {**os.environ, **client_environment(self.folder / ".medius/up", ports)}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    stack = Running(tmp_path)
    yield stack
    stack.medius("down")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_stack_runs_a_stage_from_a_deployment_and_leaves_no_process(running: Running) -> None:
    said = running.up()
    assert said.returncode == 0, said.stderr
    assert said.stdout.count(" started, process ") == 2 + len(POOLS)
    assert f"http://127.0.0.1:{running.prefect}" in said.stdout
    secret = running.environment()["AWS_SECRET_ACCESS_KEY"]
    assert secret not in said.stdout
    before = {process["name"]: process["pid"] for process in running.state()["processes"]}

    again = running.up()
    assert again.returncode == 0
    assert again.stdout.count(" runs already, process ") == 2 + len(POOLS)
    assert {process["name"]: process["pid"] for process in running.state()["processes"]} == before
    other = running.medius("up", "--prefect-port", str(running.prefect + 1))
    assert other.returncode == 2
    assert '"medius down" first' in other.stderr

    deployments = {entry["name"]: entry for entry in running.api("/deployments/filter", {})}
    assert {"micro", "tiny", "smollm2", "medius", "cpu", "gpu"} <= set(deployments)
    deployment = deployments["cpu"]["id"]
    bad = {"parameters": {"profile": "mikro", "stage": "model-base"}}
    with pytest.raises(MediusError, match=r"answers 4\d\d"):
        running.api(f"/deployments/{deployment}/create_flow_run", bad)
    good = {"parameters": {"profile": "micro", "stage": "model-base", "options": {"smoke": True}}}
    run = running.api(f"/deployments/{deployment}/create_flow_run", good)["id"]

    def ended() -> bool:
        [found] = running.api("/flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
        return found["state_type"] in {"COMPLETED", "FAILED", "CRASHED"}

    assert wait_until(ended, 900)
    [found] = running.api("/flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    assert found["state_type"] == "COMPLETED", found["state"]
    status = subprocess.run(
        [MEDIUS, "status", "micro", "--smoke"],
        cwd=running.folder, env=running.environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "finished" in next(line for line in status.stdout.splitlines() if "model-base" in line)
    for log in (running.folder / ".medius/up/logs").iterdir():
        assert secret not in log.read_text(errors="replace"), log

    token = running.state()["token"]
    assert _listening(set(marked(token))) == {"127.0.0.1"}
    down = running.medius("down")
    assert down.returncode == 0, down.stderr
    assert down.stdout.startswith("stopping the workers"), "said before what may take minutes"
    assert not marked(token)
    assert running.state()["processes"] == []
    assert (running.folder / ".medius/up/s3").is_dir(), "the data stays"


def _listening(processes: set[int]) -> set[str]:
    """The addresses at which any of these processes waits for connections."""
    sockets = [socket for pid in processes for socket in psutil.Process(pid).net_connections(kind="inet")]
    return {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}


def test_the_s3_server_listens_on_loopback_alone(tmp_path: Path) -> None:
    ports = Ports(s3=free_block())
    command = stack_services.s3_command(tmp_path, ports)
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "loopback-secret"}
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, env={**os.environ, **keys}, stdout=log, stderr=log)
    try:
        assert wait_until(lambda: stack_services.answers(ports.s3, "/", 403), 120), (tmp_path / "log").read_text()
        assert _listening({server.pid}) == {"127.0.0.1"}
    finally:
        server.kill()
        server.wait()


def test_the_pools_are_those_of_the_deployments() -> None:
    text = (stack_module.CHECKOUT / "infra" / "prefect.yaml").read_text()
    assert all(f"{{name: {pool}}}" in text for pool in POOLS)
