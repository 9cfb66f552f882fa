"""A deployment's runs and what Prefect keeps for them: places in queues, over restarts of the server and pauses."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.stack_processes import wait_until
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
