"""What `medius down` ends: exactly the processes that were started, whatever they started, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import stack_processes
from flows.stack_processes import MARK, StackProcess, end_tree, end_work, marked, wait_until

IDLE = "import time; time.sleep(600)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
# A worker of Prefect starts runs in sessions of their own. Asked to end, it kills them at once.
WORKER = """
import os, signal, subprocess, sys, time
run = {**os.environ, "PREFECT__FLOW_RUN_ID": "a run"}
child = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], env=run, start_new_session=True)
def end(*_):
    child.kill()
    child.wait()
    sys.exit()
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
time.sleep(600)
"""
# A run takes a moment to save what it has, and its own processes end with it. Its stage is a launch with a keeper.
RUN = """
import os, signal, subprocess, sys, time
seconds, spec = float(sys.argv[1]), sys.argv[2]
keeper = [sys.executable, "-m", "tasks.worker.keeper", os.path.join(os.path.dirname(spec), "stop")]
child = subprocess.Popen([*keeper, sys.executable, "-c", "import time; time.sleep(600)"], stdin=subprocess.PIPE)
def save(*_):
    time.sleep(seconds)
    open("saved", "w").close()
    child.stdin.close()
    child.wait()
    sys.exit()
signal.signal(signal.SIGTERM, save)
open("ready", "w").close()
time.sleep(600)
"""


def run_of(folder: Path, seconds: float, grace: float = 60) -> tuple[str, ...]:
    """Arguments of a worker for a run whose stage takes so long to save, and may take so long."""
    spec = folder / "launch" / "spec.json"
    spec.parent.mkdir()
    spec.write_text(json.dumps({"runtime": {"stop_grace_seconds": grace}}))
    return RUN, str(seconds), str(spec)


class Started:
    """Processes of one stack in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = uuid.uuid4().hex
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, code: str, *arguments: str) -> StackProcess:
        environment = {**os.environ, MARK: self.token}
        command = [sys.executable, "-c", code, *arguments]
        started, process = stack_processes.start(name, command, environment, self.folder, self.folder / f"{name}.log")
        self._processes.append(process)
        return started

    def reap(self) -> None:
        """Collects those that have ended: this process is their parent, which after `medius up` is nobody's."""
        for process in self._processes:
            process.poll()


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Started]:
    started = Started(tmp_path)
    yield started
    end_work(started.token, set(), set(), 0)
    started.reap()


def test_a_number_that_was_given_away_again_is_another_process(stack: Started) -> None:
    process = stack.start("idle", IDLE)
    assert process.alive()
    assert not process.model_copy(update={"started": "1"}).alive()
    assert not process.model_copy(update={"boot": "another"}).alive()
    end_tree(stack.token, process.pid, 5)
    assert not process.alive()


def test_workers_runs_and_what_they_started_end_and_nothing_else_does(stack: Started, tmp_path: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", IDLE])
    server = stack.start("server", IDLE)
    worker = stack.start("worker", WORKER, *run_of(tmp_path, 0.5))
    assert wait_until((tmp_path / "ready").exists, 30)
    assert wait_until(lambda: len(marked(stack.token)) == 5, 30)

    assert end_work(stack.token, {worker.pid}, {server.pid}, 30) == 1
    assert (tmp_path / "saved").exists(), "the run was asked, and killed neither by its worker nor here"
    assert set(marked(stack.token)) == {server.pid}
    assert stranger.poll() is None
    end_tree(stack.token, server.pid, 5)
    assert not marked(stack.token)
    stranger.kill()
    stranger.wait()


def test_a_run_whose_worker_was_killed_is_found_all_the_same(stack: Started, tmp_path: Path) -> None:
    worker = stack.start("worker", WORKER, *run_of(tmp_path, 0.5))
    assert wait_until((tmp_path / "ready").exists, 30)
    os.kill(worker.pid, 9)
    assert end_work(stack.token, set(), set(), 30) == 1
    assert (tmp_path / "saved").exists()
    assert not marked(stack.token)


def test_a_stage_has_as_long_as_it_may_take_to_save(stack: Started, tmp_path: Path) -> None:
    worker = stack.start("worker", WORKER, *run_of(tmp_path, 3, grace=60))
    assert wait_until((tmp_path / "ready").exists, 30)
    before = time.monotonic()
    assert end_work(stack.token, {worker.pid}, set(), 1) == 1
    assert (tmp_path / "saved").exists()
    assert not marked(stack.token)
    assert time.monotonic() - before < 30, "nothing waits for longer than it takes"


def test_a_stage_that_takes_longer_is_killed(stack: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_processes, "_AFTER_GRACE_SECONDS", 0)
    worker = stack.start("worker", WORKER, *run_of(tmp_path, 600, grace=2))
    assert wait_until((tmp_path / "ready").exists, 30)
    before = time.monotonic()
    assert end_work(stack.token, {worker.pid}, set(), 1) == 1
    assert 2 <= time.monotonic() - before < 2 + stack_processes._KILL_SECONDS
    assert not marked(stack.token)


def test_what_does_not_end_when_asked_is_killed(stack: Started, tmp_path: Path) -> None:
    process = stack.start("deaf", DEAF)
    assert wait_until(lambda: "deaf" in (tmp_path / "deaf.log").read_text(), 30)
    before = time.monotonic()
    end_tree(stack.token, process.pid, 1)
    assert not process.alive()
    assert time.monotonic() - before < 1 + stack_processes._KILL_SECONDS
