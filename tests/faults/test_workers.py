"""Prefect's own workers killed, alone and with the flow that they started, in a stack of `medius up`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.stack_processes import marked, wait_until
from flows.stack_services import BUCKET
from tests.e2e.micro_run import MicroRun
from tests.faults.conftest import Tell
from tests.faults.scene import RUN_SECONDS, Scene
from tests.flows.test_stack import Running

pytestmark = pytest.mark.timeout(3600)

ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
MARKED_SECONDS = 180
"""Within which a run without a process is told to the server."""
_RUN = "PREFECT__FLOW_RUN_ID"


class Stack:
    """A running stack and the recipes that are started on it."""

    def __init__(self, running: Running) -> None:
        self.running = running

    def scene(self, name: str) -> Scene:
        """A store of its own in the stack's bucket."""
        return Scene(self.running.folder / name, f"s3://{BUCKET}/{name}", self.running.environment())

    def start(self, scene: Scene) -> str:
        """A run of the deployment of micro; its id."""
        found = self.running.api("/deployments/filter", {"deployments": {"name": {"any_": ["micro"]}}})
        parameters = {"profile": "micro", "options": {"store": scene.uri}}
        created = self.running.api(f"/deployments/{found[0]['id']}/create_flow_run", {"parameters": parameters})
        return str(created["id"])

    def state(self, run: str) -> dict[str, Any]:
        """What the server says of a run."""
        [found] = self.running.api("/flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
        state: dict[str, Any] = found["state"]
        return state

    def wait_for(self, run: str, types: set[str], seconds: float = RUN_SECONDS) -> dict[str, Any]:
        """Its state, as soon as that is of one of these types."""
        assert wait_until(lambda: self.state(run)["type"] in types, seconds), self.state(run)
        return self.state(run)

    def processes(self, run: str) -> list[int]:
        """Of a flow run and all that it started."""
        found = marked(self.running.state()["token"])
        return sorted(pid for pid, variables in found.items() if variables.get(_RUN) == run)

    def flow_process(self, run: str) -> int:
        """The one that the worker started."""
        pids = self.processes(run)
        return next(pid for pid in pids if _parent(pid) not in pids)

    def kill_worker(self) -> None:
        """kill -9 of the worker for recipes."""
        [pid] = [each["pid"] for each in self.running.state()["processes"] if each["name"] == "worker-medius"]
        os.kill(pid, signal.SIGKILL)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    running = Running(tmp_path_factory.mktemp("stack"))
    try:
        said = running.up()
        assert said.returncode == 0, said.stderr
        with pytest.MonkeyPatch.context() as patch:
            for name, value in running.environment().items():
                if name.startswith("AWS_"):
                    patch.setenv(name, value)
            yield Stack(running)
        token = running.state()["token"]
    finally:
        running.medius("down")
    assert not marked(token), "the stack left a process"


def begun(stack: Stack, scene: Scene) -> str:
    """A run that has a dump's shard in the store."""
    run = stack.start(scene)
    done = wait_until(
        lambda: bool(scene.names("logits-qwen", "shards")) or stack.state(run)["type"] in ENDED, RUN_SECONDS
    )
    assert done, stack.state(run)
    assert stack.state(run)["type"] == "RUNNING", stack.state(run)
    return run


@pytest.mark.faults("kill -9 of the Prefect worker", "Its run goes on by itself; `medius up` starts the worker again.")
def test_a_killed_worker_of_prefect_loses_no_run(stack: Stack, calm: MicroRun, tell: Tell) -> None:
    scene = stack.scene("worker")
    run = begun(stack, scene)
    saved = scene.saved()
    stack.kill_worker()
    up = stack.running.up()
    assert up.returncode == 0, up.stderr
    assert stack.wait_for(run, ENDED)["type"] == "COMPLETED", stack.state(run)
    scene.require_kept(saved, ())
    scene.require_promises(calm)
    assert wait_until(lambda: not stack.processes(run), 60), "its processes are still there"
    tell("the same flow run ended Completed")


@pytest.mark.faults(
    "kill -9 of the flow's process and of the Prefect worker",
    f"The run is marked Crashed within {MARKED_SECONDS} s; a new one goes on.",
)
def test_a_killed_worker_and_flow_are_told_and_gone_on_with(stack: Stack, calm: MicroRun, tell: Tell) -> None:
    scene = stack.scene("both")
    run = begun(stack, scene)
    flow = stack.flow_process(run)
    stack.kill_worker()
    os.kill(flow, signal.SIGKILL)
    assert wait_until(lambda: not stack.processes(run), 60), "its processes are still there"
    saved = scene.saved()
    # Two of a recipe's stages are at work at once.
    unfinished = [label for label in scene.steps if label not in saved.manifests]
    assert stack.wait_for(run, ENDED, MARKED_SECONDS)["type"] == "CRASHED", stack.state(run)
    up = stack.running.up()
    assert up.returncode == 0, up.stderr
    again = stack.start(scene)
    assert stack.wait_for(again, ENDED)["type"] == "COMPLETED", stack.state(again)
    scene.require_kept(saved)
    scene.require_promises(calm, dict.fromkeys(unfinished, 1))
    tell(f"a new run went on from {len(saved.manifests)} of {len(scene.steps)} stages")
