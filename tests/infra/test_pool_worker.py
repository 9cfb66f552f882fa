"""The end of a real worker of Prefect with a run at work, by its keeper."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from flows.stack_processes import living_runs
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.runs import read_run
from tasks.artifacts.store import open_store
from tests.infra.guarded_server import GuardedServer
from tests.infra.saving import run_on, step_of

POOL = "kept"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_stopped_worker_waits_for_a_checkpoint(guarded: GuardedServer, tmp_path: Path) -> None:
    run = run_on(guarded, POOL, tmp_path)
    worker = guarded.start_worker(POOL, ["flows.pool_worker"])
    guarded.wait(lambda: list((tmp_path / "processes").iterdir()), 300, "the stage's worker")
    worker.send_signal(signal.SIGTERM)
    time.sleep(5)
    assert worker.poll() is None
    assert run in living_runs(), "Prefect's own worker has killed it by now"
    (tmp_path / "save").touch()
    guarded.wait(lambda: worker.poll() is not None, 120, "the end of the worker")
    assert worker.returncode == 0
    assert run not in living_runs()
    store = open_store(guarded.environment["MEDIUS_STORE"])
    assert any(True for _ in store.list(Artifact(store, step_of(tmp_path).directory).path("checkpoints")))
    record = read_run(store, run)
    assert record is not None
    assert record.state == "interrupted"
    [found] = guarded.api.everything("/flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    assert found["state_type"] == "CRASHED", "it can be retried"
