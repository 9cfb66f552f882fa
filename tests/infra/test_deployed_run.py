"""A deployment's runs and what Prefect keeps for them: places in queues, over restarts of the server and pauses; and
how those that ended are taken up.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.dag import build
from flows.profiles import load_profile
from flows.stack_processes import wait_until
from flows.stack_services import STORE
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.checkpoint import checkpoint_lists
from tasks.artifacts.store import open_store
from tests.committed import resumed_after
from tests.faults.test_workers import Stack
from tests.flows.test_stack import Running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LEASE_SECONDS = 300
"""For so long Prefect leases the place of a deployment with a limit of its own; a run that lost it is ended."""
ASKS = "approval={above_usd: 0.000000000001}"
"""Before every stage that computes."""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    stack = Running(tmp_path)
    said = stack.up()
    assert said.returncode == 0, said.stderr
    yield stack
    stack.medius("down")


def start(running: Running, **options: Any) -> str:
    [deployment] = running.api("/deployments/filter", {"deployments": {"name": {"any_": ["micro"]}}})
    parameters = {"profile": "micro", "options": options}
    run: str = running.api(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})["id"]
    return run


def state(running: Running, run: str) -> str:
    [found] = running.api("/flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    return str(found["state_type"])


def reaches(running: Running, run: str, wanted: str, seconds: float = 900) -> bool:
    return wait_until(lambda: state(running, run) == wanted, seconds)


def test_runs_of_one_profile_go_one_after_the_other(running: Running) -> None:
    first, second = start(running, until="corpus-llama"), start(running, until="corpus-llama")
    seen: set[tuple[str, str]] = set()

    def both_ended() -> bool:
        seen.add((state(running, first), state(running, second)))
        return seen >= {("COMPLETED", "COMPLETED")}

    assert wait_until(both_ended, 900), seen
    busy = {"PENDING", "RUNNING"}
    assert not [pair for pair in seen if set(pair) <= busy], "two at once"
    assert ("RUNNING", "SCHEDULED") in seen or ("SCHEDULED", "RUNNING") in seen


def test_a_run_outlives_a_long_wait_for_approval_and_a_restart_of_the_server(running: Running) -> None:
    run = start(running, until="logits-qwen", overrides=[ASKS])
    assert reaches(running, run, "PAUSED")
    second = start(running, until="corpus-llama")
    waits_until = time.monotonic() + LEASE_SECONDS + 30
    [server] = [each["pid"] for each in running.state()["processes"] if each["name"] == "prefect"]
    os.kill(server, signal.SIGKILL)
    said = running.up()
    assert said.returncode == 0, said.stderr
    assert reaches(running, second, "COMPLETED"), "a run that waits for somebody keeps no place"
    time.sleep(max(0.0, waits_until - time.monotonic()))
    deadline = time.monotonic() + 900
    while state(running, run) != "COMPLETED":
        assert state(running, run) in {"PAUSED", "RUNNING"}, state(running, run)
        assert time.monotonic() < deadline
        if state(running, run) == "PAUSED":
            running.api(f"/flow_runs/{run}/resume", {})
        time.sleep(2)


STAGE = "distill-qwen"


@pytest.mark.parametrize("way", ["prefect flow-run retry", "single-stage"])
def test_a_killed_run_s_training_is_taken_up_from_its_checkpoint(
    running: Running, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    for name, value in running.environment().items():
        monkeypatch.setenv(name, value)
    # Each way has a training of its own.
    options = {"overrides": [f"branches.qwen.distill.recipe.steps={40 + len(way)}"]}
    [step] = [each for each in build(load_profile("micro", options["overrides"])) if each.label == STAGE]
    artifact = Artifact(open_store(STORE), step.directory)
    run = start(running, until=STAGE, **options)

    assert wait_until(lambda: bool(checkpoint_lists(artifact)), 900)
    os.kill(Stack(running).flow_process(run), signal.SIGKILL)
    assert reaches(running, run, "CRASHED"), "its worker lives, and tells"
    # Prefect's worker tells the end a second time, 3 s after its runner: a retry in between is marked as crashed again.
    time.sleep(10)
    assert artifact.manifest() is None
    if way == "single-stage":
        [deployment] = running.api(
            "/deployments/filter",
            {"deployments": {"name": {"any_": ["cpu"]}}, "flows": {"name": {"any_": ["single-stage"]}}},
        )
        parameters = {"profile": "micro", "stage": STAGE, "options": options}
        run = running.api(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})["id"]
    else:
        command = [sys.executable, "-m", "prefect", "flow-run", "retry", run]
        asked = subprocess.run(command, env=running.environment(), capture_output=True, text=True, check=False)
        assert asked.returncode == 0, asked.stderr
    assert wait_until(lambda: state(running, run) == "COMPLETED", 900), state(running, run)
    assert artifact.manifest() is not None
    assert max(resumed_after(artifact), default=0) > 0, "not from the first step"
