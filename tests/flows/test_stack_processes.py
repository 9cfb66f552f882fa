"""What `medius down` ends: exactly the processes that were started, whatever they started, and nothing else."""

from __future__ import annotations

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
# A worker of Prefect starts runs in sessions of their own.
WORKER = """
import os, subprocess, sys, time
run = {**os.environ, "PREFECT__FLOW_RUN_ID": "a run"}
subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=run, start_new_session=True)
print("started", flush=True)
time.sleep(600)
"""
# A run takes a moment to save what it has, and its own processes end with it.
RUN = """
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
def save(*_):
    open("saved", "w").close()
    child.kill()
    child.wait()
    sys.exit()
signal.signal(signal.SIGTERM, save)
open("ready", "w").close()
time.sleep(600)
"""


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
    worker = stack.start("worker", WORKER, RUN)
    assert wait_until((tmp_path / "ready").exists, 30)
    assert len(marked(stack.token)) == 4

    assert end_work(stack.token, {worker.pid}, {server.pid}, 30) == 1
    assert (tmp_path / "saved").exists(), "the run was asked, not killed"
    assert set(marked(stack.token)) == {server.pid}
    assert stranger.poll() is None
    end_tree(stack.token, server.pid, 5)
    assert not marked(stack.token)
    stranger.kill()
    stranger.wait()


def test_a_run_whose_worker_was_killed_is_found_all_the_same(stack: Started, tmp_path: Path) -> None:
    worker = stack.start("worker", WORKER, RUN)
    assert wait_until((tmp_path / "ready").exists, 30)
    os.kill(worker.pid, 9)
    assert end_work(stack.token, set(), set(), 30) == 1
    assert (tmp_path / "saved").exists()
    assert not marked(stack.token)


def test_what_does_not_end_when_asked_is_killed(stack: Started, tmp_path: Path) -> None:
    process = stack.start("deaf", DEAF)
    assert wait_until(lambda: "deaf" in (tmp_path / "deaf.log").read_text(), 30)
    before = time.monotonic()
    end_tree(stack.token, process.pid, 1)
    assert not process.alive()
    assert time.monotonic() - before < 1 + stack_processes._KILL_SECONDS
