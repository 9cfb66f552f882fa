"""How workers end when they should: asked, forced, or because whoever started them is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.artifacts.artifact import Artifact, encode_record
from tasks.artifacts.checkpoint import checkpoint_lists
from tasks.artifacts.errors import InterruptedRunError, LeaseLostError, WorkerInterruptedError
from tasks.artifacts.lease import Lease, LeaseRecord
from tasks.artifacts.store import Store
from tasks.runtime.execute import RunContext, execute
from tests.runtime.conftest import ROOT, Background, is_alive, processes, wait_for
from tests.runtime.errand import errand


def test_a_stopped_run_saves_and_the_next_goes_on_from_there(context: RunContext, announced: Path) -> None:
    step = errand("a", behaviour="work", steps=60, announce=str(announced))
    running = Background(step, context)
    wait_for(lambda: processes(announced), 30, "the worker starts")
    time.sleep(0.5)
    context.stop.set()
    running.thread.join(20)
    assert isinstance(running.error, InterruptedRunError)
    assert running.error.exit_code == 4
    assert "run the same command again" in str(running.error)
    assert not any(is_alive(process) for process in processes(announced))
    assert not context.store.exists(f"{step.directory}/lease.json")
    context.stop.clear()
    outcome = execute(step, context)
    assert 0 < outcome.manifest.metrics["resumed_at"] < 60


def test_a_stopped_run_launches_nothing(context: RunContext, announced: Path) -> None:
    context.stop.set()
    with pytest.raises(InterruptedRunError):
        execute(errand("a", announce=str(announced)), context)
    assert not processes(announced)


def test_a_worker_that_does_not_listen_is_killed_after_the_grace_period(context: RunContext, announced: Path) -> None:
    running = Background(errand("a", behaviour="deaf", announce=str(announced), stop_grace_seconds=1), context)
    wait_for(lambda: processes(announced), 30, "the worker starts")
    time.sleep(0.5)
    start = time.monotonic()
    context.stop.set()
    running.thread.join(20)
    assert 1 <= time.monotonic() - start <= 5
    assert isinstance(running.error, InterruptedRunError)
    assert not any(is_alive(process) for process in processes(announced))


def test_a_lost_lease_ends_the_worker(context: RunContext, announced: Path) -> None:
    step = errand("a", behaviour="deaf", announce=str(announced), lease_ttl_seconds=5)
    running = Background(step, context)
    wait_for(lambda: processes(announced), 30, "the worker starts")
    path = f"{step.directory}/lease.json"
    record = LeaseRecord.model_validate_json(context.store.get(path))
    taken = record.model_copy(update={"owner": "other", "host": "node7"})
    context.store.put(path, encode_record(taken))
    running.thread.join(10)
    assert isinstance(running.error, LeaseLostError)
    assert running.error.retryable
    assert not any(is_alive(process) for process in processes(announced))
    assert LeaseRecord.model_validate_json(context.store.get(path)) == taken


def test_a_lease_that_is_lost_before_there_is_a_worker_ends_it_too(
    context: RunContext, announced: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TellsNobody(Lease):
        """The call that ends the workers came when there were none."""

        def __init__(self, store: Store, path: str, ttl_seconds: float, _on_lost: object) -> None:
            super().__init__(store, path, ttl_seconds)

    monkeypatch.setattr("tasks.runtime.execute.Lease", TellsNobody)
    step = errand("a", behaviour="deaf", announce=str(announced), lease_ttl_seconds=5)
    running = Background(step, context)
    wait_for(lambda: processes(announced), 30, "the worker starts")
    context.store.delete(f"{step.directory}/lease.json")
    running.thread.join(10)
    assert isinstance(running.error, LeaseLostError)
    assert not any(is_alive(process) for process in processes(announced))


_LAUNCH = """
import sys
from pathlib import Path
from tasks.artifacts.store import open_store
from tasks.runtime.execute import RunContext, execute
from tests.runtime.errand import errand
store, scratch, announced, launcher, count = sys.argv[1:]
step = errand("a", behaviour="deaf", announce=announced, launcher=launcher, num_processes=int(count))
execute(step, RunContext(store=open_store(store), scratch=Path(scratch)))
"""


@pytest.fixture
def launching(
    store: Store, tmp_path: Path, announced: Path, request: pytest.FixtureRequest
) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own that executes a step whose workers neither end nor listen."""
    launcher, count = request.param
    arguments = [store.uri, str(tmp_path / "scratch"), str(announced), launcher, str(count)]
    process = subprocess.Popen([sys.executable, "-c", _LAUNCH, *arguments], cwd=ROOT)
    try:
        wait_for(lambda: len(processes(announced)) == count, 120, "the workers start")
        yield process
    finally:
        process.kill()
        process.wait()


def tree(scratch: Path) -> list[int]:
    """Every process whose command line names the scratch folder: workers, ranks and what launched them."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and is_alive(int(folder.name)):
            try:
                command = (folder / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if str(scratch).encode() in command:
                found.append(int(folder.name))
    return found


@pytest.mark.parametrize(
    "launching",
    [("python", 1), ("torchrun", 2), ("deepspeed", 2)],
    indirect=True,
    ids=["python", "torchrun", "deepspeed"],
)
def test_no_worker_outlives_a_killed_run(
    launching: subprocess.Popen[bytes], announced: Path, tmp_path: Path, store: Store
) -> None:
    workers = processes(announced)
    assert all(is_alive(worker) for worker in workers)
    assert set(workers) <= set(tree(tmp_path / "scratch"))
    launching.send_signal(signal.SIGKILL)
    launching.wait()

    def gone() -> bool:
        return not tree(tmp_path / "scratch") and not any(is_alive(worker) for worker in workers)

    wait_for(gone, 5, "all processes of the run are gone")
    # The dead run's lease delays nobody on this host.
    step = errand("a")
    start = time.monotonic()
    execute(step, RunContext(store=store, scratch=tmp_path / "scratch"))
    assert time.monotonic() - start < 30
    assert Artifact(store, step.directory).manifest() is not None


def test_a_node_that_is_taken_away_is_worth_a_retry(context: RunContext, announced: Path) -> None:
    """A preempted node's SIGTERM goes to the worker itself, past the runtime."""
    step = errand("a", behaviour="work", steps=60, announce=str(announced))
    running = Background(step, context)
    wait_for(lambda: processes(announced), 30, "the worker starts")
    time.sleep(0.5)
    os.kill(processes(announced)[0], signal.SIGTERM)
    running.thread.join(20)
    assert isinstance(running.error, WorkerInterruptedError)
    assert running.error.retryable
    assert 0 < execute(step, context).manifest.metrics["resumed_at"] < 60


@pytest.mark.parametrize(
    ("launcher", "count", "save_seconds"),
    [
        ("python", 1, 3),
        ("deepspeed", 2, 3),
        # Its agent gives ranks 30 s.
        pytest.param("torchrun", 2, 35, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_every_process_of_a_launch_reaches_its_ranks_alone(
    context: RunContext, announced: Path, tmp_path: Path, launcher: str, count: int, save_seconds: float
) -> None:
    """As a scheduler sends it that takes the node away; what started the ranks waits until they have saved."""
    save = tmp_path / "save"
    step = errand(
        "a", behaviour="work", steps=6000, announce=str(announced), save_when=str(save), launcher=launcher,
        num_processes=count,
    )  # fmt: skip
    running = Background(step, context)
    wait_for(lambda: len(processes(announced)) == count, 60, "the ranks start")
    launch = tree(context.scratch)
    assert len(launch) > count
    for process in launch:
        os.kill(process, signal.SIGTERM)
    # Nothing is waited for: this is how long saving takes.
    time.sleep(save_seconds)
    assert all(map(is_alive, launch))
    save.touch()
    running.thread.join(60)
    assert isinstance(running.error, WorkerInterruptedError)
    assert running.error.retryable
    assert checkpoint_lists(Artifact(context.store, step.directory))
    assert not any(map(is_alive, launch))


def test_ranks_under_torchrun_are_stopped_like_any_worker(context: RunContext, announced: Path) -> None:
    step = errand("a", behaviour="work", steps=600, announce=str(announced), launcher="torchrun", num_processes=2)
    running = Background(step, context)
    wait_for(lambda: len(processes(announced)) == 2, 60, "the ranks start")
    time.sleep(0.5)
    context.stop.set()
    running.thread.join(30)
    assert isinstance(running.error, InterruptedRunError)
    assert not any(is_alive(process) for process in processes(announced))
    assert checkpoint_lists(Artifact(context.store, step.directory))


def test_a_worker_whose_parent_is_gone_before_it_begins_does_not_begin(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    # Process 1 is alive but is not the parent, as after a kill between fork and the leash's first line.
    result = subprocess.run([sys.executable, "-m", "tasks.worker.leash", "1", "touch", str(marker)], check=False)
    assert result.returncode == 1
    assert not marker.exists()
