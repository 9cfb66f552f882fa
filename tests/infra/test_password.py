"""Deploying to and running on a server that wants a password, without `medius up`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.infra.guarded_server import ROOT, GuardedServer

DEPLOY = ("flows.stack_deploy", str(ROOT / "infra" / "prefect.yaml"))
WHAT_TO_DO = "PREFECT_API_AUTH_STRING"


@pytest.mark.parametrize("password", ["", "medius:wrong"], ids=["none", "wrong"])
def test_without_the_password_each_command_says_what_to_do(guarded: GuardedServer, password: str) -> None:
    for module in (
        DEPLOY,
        ("flows.automations", str(ROOT / "infra" / "automations.yaml")),
        ("flows.cli", "run", "micro", "--until", "model-base"),
        ("flows.cli", "approve"),
        ("flows.dead_runs",),
    ):
        said = guarded.module(*module, PREFECT_API_AUTH_STRING=password)
        assert said.returncode == 1, said
        assert WHAT_TO_DO in said.stderr, said
        assert "Traceback" not in said.stderr
        assert len(said.stderr.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_deployed_and_run_with_the_password(guarded: GuardedServer, tmp_path: Path) -> None:
    said = guarded.module(*DEPLOY)
    assert said.returncode == 0, said
    guarded.start_worker("cpu")
    api = guarded.api
    [cpu] = [entry for entry in api.post("/deployments/filter", {}) if entry["name"] == "cpu"]
    parameters = {"profile": "micro", "stage": "model-base", "options": {"smoke": True}}
    run = api.post(f"/deployments/{cpu['id']}/create_flow_run", {"parameters": parameters})["id"]

    def state() -> str:
        [found] = api.everything("/flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
        return str(found["state_type"])

    guarded.wait(lambda: state() in {"COMPLETED", "FAILED", "CRASHED"}, 1200, "the run's end")
    assert state() == "COMPLETED"
    for log in guarded.folder.glob("*.log"):
        assert "word for Word" not in log.read_text(errors="replace"), "no password in a log"
