"""Cancelling on the dashboard, with a real Prefect worker, also where a checkpoint takes longer than Prefect waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.stack_processes import living_runs
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.checkpoint import checkpoint_lists
from tasks.artifacts.runs import read_run
from tasks.artifacts.store import open_store
from tests.infra.guarded_server import GuardedServer
from tests.infra.saving import run_on, step_of
from tests.runtime.conftest import is_alive

POOL = "saving"
CANCEL = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
"""What the dashboard's button and `prefect flow-run cancel` send."""


@pytest.fixture
def started(guarded: GuardedServer, tmp_path: Path) -> str:
    """The id of a run that a worker has begun, of a process that works."""
    run = run_on(guarded, POOL, tmp_path)
    guarded.start_worker(POOL)
    guarded.wait(lambda: list((tmp_path / "processes").iterdir()), 300, "the stage's worker")
    return run


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_cancelling_waits_for_a_checkpoint_longer_than_prefect_does(
    guarded: GuardedServer, started: str, tmp_path: Path
) -> None:
    api, store, run = guarded.api, open_store(guarded.environment["MEDIUS_STORE"]), started
    [worker] = [int(path.name) for path in (tmp_path / "processes").iterdir()]
    api.post(f"/flow_runs/{run}/set_state", CANCEL)

    def state() -> str:
        [found] = api.everything("/flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
        return str(found["state_type"])

    record = read_run(store, run)
    assert record is not None
    assert record.process is not None
    guarded.wait(
        lambda: record.process is not None and record.process.is_gone(), 120, "Prefect kills the flow's process"
    )
    guarded.wait(lambda: state() == "CANCELLED", 120, "the run is cancelled")
    assert is_alive(worker), "its worker still saves"
    assert run in living_runs(), "so nothing takes the run for a dead one"

    (tmp_path / "save").touch()
    artifact = Artifact(store, step_of(tmp_path).directory)
    guarded.wait(lambda: checkpoint_lists(artifact), 120, "the checkpoint")
    guarded.wait(lambda: run not in living_runs(), 60, "the end of all processes")
    assert not list((guarded.folder / ".medius/scratch").rglob("spec.json")), "its scratch folder is gone"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_cancelling_a_run_that_saves_in_time_leaves_no_process(
    guarded: GuardedServer, started: str, tmp_path: Path
) -> None:
    api, run = guarded.api, started
    (tmp_path / "save").touch()
    api.post(f"/flow_runs/{run}/set_state", CANCEL)
    guarded.wait(lambda: run not in living_runs(), 120, "the end of all processes")
    guarded.wait(
        lambda: (
            api.everything("/flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})[0]["state_type"] == "CANCELLED"
        ),
        120,
        "the run is cancelled",
    )
    store = open_store(guarded.environment["MEDIUS_STORE"])
    assert any(True for _ in store.list(Artifact(store, step_of(tmp_path).directory).path("checkpoints")))
    record = read_run(store, run)
    assert record is not None
    assert record.state == "interrupted"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_whose_worker_was_started_again_can_be_cancelled(
    guarded: GuardedServer, started: str, tmp_path: Path
) -> None:
    """No worker knows it any more: the run has to see for itself that it is cancelled."""
    api, run = guarded.api, started
    guarded.kill_workers()
    guarded.start_worker(POOL)
    assert run in living_runs()
    (tmp_path / "save").touch()
    api.post(f"/flow_runs/{run}/set_state", CANCEL)
    # Prefect's server would call it Cancelled after 300 s, and its processes would work on.
    guarded.wait(lambda: run not in living_runs(), 120, "the end of all processes")
    [found] = api.everything("/flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    assert found["state_type"] == "CANCELLED"
    assert "was stopped; run the same command again" in found["state"]["message"], "the run said so itself"
    store = open_store(guarded.environment["MEDIUS_STORE"])
    assert any(True for _ in store.list(Artifact(store, step_of(tmp_path).directory).path("checkpoints")))
    record = read_run(store, run)
    assert record is not None
    assert record.state == "interrupted"
