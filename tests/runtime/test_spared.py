"""A runtime that is killed while its worker saves a checkpoint: Prefect does that to a cancelled flow after 30 s."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.checkpoint import checkpoint_lists
from tasks.artifacts.errors import InterruptedRunError
from tasks.artifacts.store import Store
from tasks.runtime.declare import Step
from tasks.runtime.devices import VISIBLE, devices_for
from tasks.runtime.execute import RunContext, execute
from tasks.worker.spec import Event
from tests.runtime.conftest import ROOT, is_alive, processes, wait_for
from tests.runtime.errand import errand

_RUNTIME = """
import signal, sys
from pathlib import Path
from tasks.artifacts.store import open_store
from tasks.runtime.devices import VISIBLE, devices_for
from tasks.runtime.execute import RunContext, execute
from tests.runtime.errand import errand
store, scratch, announced, save_when, launcher, count, grace = sys.argv[1:]
step = errand(
    "a", behaviour="work", steps=100_000, announce=announced, save_when=save_when, launcher=launcher,
    num_processes=int(count), stop_grace_seconds=float(grace),
)
context = RunContext(store=open_store(store), scratch=Path(scratch))
signal.signal(signal.SIGTERM, lambda *_: context.stop.set())
execute(step, context)
"""
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(store: Store, tmp_path: Path, announced: Path) -> Iterator[Start]:
    """start(launcher, processes, grace) runs a step in a process of its own; it returns when the workers work."""
    started = []

    def begin(launcher: str, count: int, grace_seconds: float) -> subprocess.Popen[bytes]:
        arguments = [store.uri, tmp_path / "scratch", announced, tmp_path / "save", launcher, count, grace_seconds]
        process = subprocess.Popen([sys.executable, "-c", _RUNTIME, *map(str, arguments)], cwd=ROOT)
        started.append(process)
        wait_for(lambda: len(processes(announced)) == count, 120, "the workers start")
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def ask_and_kill(runtime: subprocess.Popen[bytes], scratch: Path) -> None:
    """Asks the run to stop, and kills its process while its worker has not saved yet."""
    runtime.send_signal(signal.SIGTERM)
    wait_for(lambda: list(scratch.glob("*/*/stop")), 20, "the worker is asked")
    runtime.kill()
    runtime.wait()


@pytest.mark.parametrize(("launcher", "count"), [("python", 1), ("torchrun", 2)])
def test_a_worker_that_was_asked_to_stop_saves_although_its_run_is_killed(
    start: Start, launcher: str, count: int, announced: Path, store: Store, tmp_path: Path
) -> None:
    scratch, step = tmp_path / "scratch", errand("a", steps=100_000)
    artifact = Artifact(store, step.directory)
    ask_and_kill(start(launcher, count, 120), scratch)

    assert all(is_alive(worker) for worker in processes(announced))
    assert not checkpoint_lists(artifact)
    [lock] = scratch.glob("*/*.lock")
    # The next run of the step waits for it, and goes on from what it saves.
    context = RunContext(store=store, scratch=scratch)
    said: list[Event] = []

    def stop_at_the_first_step(_step: Step, event: Event) -> None:
        said.append(event)
        if event.kind == "progress":
            context.stop.set()

    context.watch = stop_at_the_first_step
    errors: list[BaseException] = []

    def run_again() -> None:
        try:
            execute(errand("a", steps=100_000, behaviour="work", announce=str(tmp_path / "again")), context)
        except InterruptedRunError as error:
            errors.append(error)

    (tmp_path / "again").mkdir()
    again = threading.Thread(target=run_again)
    again.start()
    waits = "saves its last checkpoint"
    wait_for(lambda: any(waits in each.message for each in said), 60, lambda: f"the next run waits; it has said {said}")
    assert not processes(tmp_path / "again")
    (tmp_path / "save").touch()
    wait_for(lambda: checkpoint_lists(artifact), 60, "the checkpoint is there")
    wait_for(lambda: not any(map(is_alive, processes(announced))), 20, "the workers end")
    wait_for(lambda: not lock.exists() and not lock.with_suffix("").exists(), 20, "the launch's folder is gone")
    again.join(120)
    assert len(errors) == 1
    [first, *_] = [event.done for event in said if event.kind == "progress"]
    assert first is not None
    assert first > 0


def test_nobody_is_spared_longer_than_the_grace_period(start: Start, announced: Path, tmp_path: Path) -> None:
    ask_and_kill(start("python", 1, 3), tmp_path / "scratch")
    (worker,) = processes(announced)
    assert is_alive(worker), "it has its grace period first"
    wait_for(lambda: not is_alive(worker), 10, "the worker is killed")
    assert not (tmp_path / "save").exists(), "it never came to save"


def test_its_accelerator_is_its_own_until_it_ends(
    start: Start, announced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VISIBLE, "4")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def is_free() -> bool:
        with devices_for(errand("b")) as devices:
            return devices is not None

    ask_and_kill(start("python", 1, 120), tmp_path / "scratch")
    assert not is_free()
    (tmp_path / "save").touch()
    wait_for(lambda: not any(map(is_alive, processes(announced))), 60, "the worker ends")
    wait_for(is_free, 10, "its accelerator is free")
