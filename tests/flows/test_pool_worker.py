"""The end of a worker's keeper, with the fake worker and run of the tests of `medius down`; real ones: tests/infra."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.stack_processes import living_runs, wait_until
from tests.flows.test_stack_processes import WORKER, run_of
from tests.runtime.conftest import is_alive

KEEP = "import sys; from flows.pool_worker import keep; sys.exit(keep([sys.executable, '-c', *sys.argv[1:]]))"
Keep = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def keeping(tmp_path: Path) -> Iterator[Keep]:
    """keeping(code, …): a keeper of such a worker, in a session of its own as in a terminal."""
    started: list[subprocess.Popen[str]] = []

    def start(*worker: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", KEEP, *worker]
        started.append(
            subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_worker_that_is_stopped_lets_its_runs_save(keeping: Keep, tmp_path: Path, number: signal.Signals) -> None:
    keeper = keeping(WORKER, *run_of(tmp_path, 1))
    assert wait_until((tmp_path / "ready").exists, 30)
    # As Ctrl-C does: to the whole foreground group.
    os.killpg(keeper.pid, number)
    _, said = keeper.communicate(timeout=60)
    assert keeper.returncode == 0, said
    assert (tmp_path / "saved").exists()
    assert "a run" not in living_runs()
    assert "each stage saves what it has" in said


def test_a_second_signal_waits_for_nothing(keeping: Keep, tmp_path: Path) -> None:
    keeper = keeping(WORKER, *run_of(tmp_path, 5))
    assert wait_until((tmp_path / "ready").exists, 30)
    keeper.send_signal(signal.SIGINT)
    time.sleep(1)
    keeper.send_signal(signal.SIGINT)
    assert keeper.wait(3) != 0
    assert not (tmp_path / "saved").exists()
    assert wait_until((tmp_path / "saved").exists, 30), "the run was asked, and saves by itself"
    assert wait_until(lambda: "a run" not in living_runs(), 30)


def test_it_ends_as_its_worker_does(keeping: Keep) -> None:
    assert keeping("import sys; sys.exit(3)").wait(30) == 3


def test_a_keeper_that_is_killed_leaves_no_worker(keeping: Keep, tmp_path: Path) -> None:
    keeper = keeping("import os, time; open('worker', 'w').write(str(os.getpid())); time.sleep(600)")
    assert wait_until(lambda: (tmp_path / "worker").exists() and bool((tmp_path / "worker").read_text()), 30)
    worker = int((tmp_path / "worker").read_text())
    keeper.kill()
    keeper.wait()

    assert wait_until(lambda: not is_alive(worker), 10)
