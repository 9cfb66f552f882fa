"""A stage on another pool, with a real Prefect server. But for one real worker, the test is the pool's worker: it takes
the flow runs that stand in the queue and ends them as the case wants.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType, TaskRun
from prefect.events import emit_event
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Crashed, Failed, Running, State
from prefect.testing.utilities import prefect_test_harness

from flows.dag import build
from flows.dispatch import FLOW, Dispatch, dispatch_of_deployment
from flows.heartbeats import Heartbeats
from flows.opened import gather
from flows.prefect_api import PrefectApi
from flows.profiles import load_profile
from flows.run_options import RUN, RunOptions
from flows.single_stage import single_stage
from flows.stack import CHECKOUT
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError, InterruptedRunError, MediusError, WorkerFailedError
from tasks.artifacts.store import Store
from tasks.runtime.declare import Step
from tasks.runtime.execute import RunContext, execute
from tasks.runtime.prefect_task import submit_stage
from tests.runtime.errand import errand

POOL = "cpu"
Work = Callable[[FlowRun, int], "State[Any] | None"]
"""(flow run, how many it took before) -> the state that ends it; None leaves it in the queue."""


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=300):
        with get_client(sync_client=True) as client:
            with suppress(ObjectAlreadyExists):
                client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
            client.create_deployment(
                client.create_flow_from_name(FLOW),
                POOL,
                work_pool_name=POOL,
                # Not `path`: of that a worker makes a copy, environment and all.
                pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(CHECKOUT)}}],
                entrypoint="flows.single_stage.single_stage",
            )
        yield


@pytest.fixture(autouse=True)
def _workers_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))


@pytest.fixture
def context(store: Store, tmp_path: Path) -> RunContext:
    return RunContext(store=store, scratch=tmp_path / "scratch", flow_run="here")


def away(text: str, **fields: Any) -> Step:
    return errand(text, pool=POOL, retry_delay_seconds=0.1, **fields)


class Worker:
    """Takes the queued flow runs of the pool while the block runs, from when `at_least` of them are queued."""

    def __init__(self, work: Work, at_least: int = 1) -> None:
        self.taken: list[FlowRun] = []
        self._work = work
        self._at_least = at_least
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._loop)

    def __enter__(self) -> Worker:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._done.set()
        self._thread.join()

    def _loop(self) -> None:
        with get_client(sync_client=True) as client:
            while not self._done.wait(0.2):
                runs = queued(client)
                if not self.taken and len(runs) < self._at_least:
                    continue
                for run in runs:
                    if run.id not in {other.id for other in self.taken}:
                        self.taken.append(run)
                        if (end := self._work(run, len(self.taken) - 1)) is not None:
                            client.set_flow_run_state(run.id, Running(), force=True)
                            client.set_flow_run_state(run.id, end, force=True)


def queued(client: SyncPrefectClient) -> Sequence[FlowRun]:
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED, StateType.PENDING]))
    runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(state=state))
    return sorted((run for run in runs if run.deployment_id is not None), key=lambda run: run.created or 0)


def read(run: FlowRun) -> FlowRun:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(run.id)


def run(
    step: Step, context: RunContext, heartbeats: Heartbeats | None = None
) -> tuple[Any, BaseException | None, TaskRun]:
    """Runs a step in a flow that has other pools: what it returned, how the flow failed, and its task run."""
    found: dict[str, Any] = {}
    context.elsewhere = Dispatch("micro", RUN, context.store, context.stop, heartbeats, poll_seconds=0.2)

    @flow(name="errands", persist_result=False)
    def errands() -> None:
        from prefect.runtime import flow_run

        found["id"] = flow_run.get_id()
        [found["ref"]] = gather([submit_stage(step, context, [])])

    error = None
    try:
        errands()
    except MediusError as raised:
        error = raised
    with get_client(sync_client=True) as client:
        runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[found["id"]])))
    [task] = [run for run in runs if run.name == step.label]
    return found.get("ref"), error, task


def name_of(task: TaskRun) -> str:
    assert task.state is not None
    return str(task.state.name)


def test_it_is_made_there_and_judged_here(context: RunContext) -> None:
    step = away("a")

    def make(_run: FlowRun, _before: int) -> State[Any]:
        execute(step, replace(context, flow_run="there", elsewhere=None))
        return Completed()

    with Worker(make) as worker:
        ref, error, task = run(step, context)
        assert error is None
        assert name_of(task) == "Completed"
        assert not ref.reused
        manifest = Artifact(context.store, step.directory).manifest()
        assert manifest is not None
        assert manifest.provenance.flow_run == "there"
        [child] = worker.taken
        assert child.parent_task_run_id is not None, "the dashboard shows it below this run"
        assert child.parameters == {
            "stage": step.label,
            "profile": "micro",
            "options": {"overrides": [], "store": context.store.uri, "smoke": False, "approved": True},
            "key": step.key,
        }
        _, error, task = run(step, context)
        assert error is None
        assert name_of(task) == "Reused"
        assert len(worker.taken) == 1


def test_a_gate_that_failed_there_fails_here_with_its_table(context: RunContext) -> None:
    step = away("too long", label="gated", max_length=3)

    def make(_run: FlowRun, _before: int) -> State[Any]:
        with pytest.raises(MediusError) as caught:
            execute(step, replace(context, elsewhere=None))
        return Failed(message=f"Flow run encountered an exception: GateFailedError: {caught.value}")

    with Worker(make):
        _, error, task = run(step, context)
    assert getattr(error, "exit_code", None) == 3
    assert task.run_count == 1
    with get_client(sync_client=True) as client:
        [table] = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["gates-gated"])))
    assert json.loads(str(table.data))[0]["passed"] == "NO"


def test_a_run_that_failed_there_is_not_tried_again_and_says_why(context: RunContext) -> None:
    message = "Flow run encountered an exception: WorkerFailedError: errand: it ran out of memory"
    with Worker(lambda _run, _before: Failed(message=message)) as worker:
        _, error, task = run(away("a", retries=2), context)
    assert type(error) is WorkerFailedError
    there = f"flow run {worker.taken[0].name} on the pool cpu"
    assert str(error) == f"errand: {there} failed: WorkerFailedError: errand: it ran out of memory"
    assert task.run_count == 1


def test_a_run_that_was_lost_there_is_tried_again(context: RunContext) -> None:
    step = away("a", retries=1)

    def make(_run: FlowRun, before: int) -> State[Any]:
        if before == 0:
            return Crashed(message="its process ended")
        execute(step, replace(context, elsewhere=None))
        return Completed()

    with Worker(make) as worker:
        _, error, task = run(step, context)
    assert error is None
    assert task.run_count == len(worker.taken) == 2


def test_a_run_whose_host_is_gone_is_given_up_and_tried_again(context: RunContext) -> None:
    """Nobody tells its end: no worker, no process, only that its heartbeats stop."""
    step = away("a", retries=1)

    def make(run: FlowRun, before: int) -> State[Any] | None:
        if before == 0:
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(run.id, Running(), force=True)
            for _ in range(2):
                emit_event("prefect.flow-run.heartbeat", {"prefect.resource.id": f"prefect.flow-run.{run.id}"})
            return None
        execute(step, replace(context, elsewhere=None))
        return Completed()

    with Worker(make) as worker:
        _, error, task = run(step, context, Heartbeats(PrefectApi(str(PREFECT_API_URL.value())), 1))
    assert error is None
    assert task.run_count == len(worker.taken) == 2
    lost = read(worker.taken[0])
    assert lost.state_type == StateType.CRASHED, "it keeps no place of its pool"
    assert lost.state is not None
    assert lost.state.message == "lost: no heartbeat for 5 s, its host is gone or cut off"


def test_a_store_that_only_the_other_machine_sees_is_told(context: RunContext) -> None:
    with Worker(lambda _run, _before: Completed()):
        _, error, _ = run(away("a"), context)
    assert type(error) is BadInputError
    assert "is done, but" in str(error)
    assert "name a store in the profile that all pools reach" in str(error)


def test_a_pool_without_a_deployment_is_told(context: RunContext) -> None:
    _, error, _ = run(errand("a", pool="tpu"), context)
    assert type(error) is BadInputError
    assert "errand is for the pool tpu, which has no deployment single-stage/tpu; add it to" in str(error)


def test_a_stop_here_cancels_there(context: RunContext) -> None:
    def stop(_run: FlowRun, _before: int) -> None:
        context.stop.set()

    with Worker(stop) as worker:
        _, error, _ = run(away("a", stop_grace_seconds=60), context)
    assert type(error) is InterruptedRunError
    [child] = worker.taken
    assert read(child).state_type == StateType.CANCELLED


def shared(text: str, replicas: int, **fields: Any) -> Step:
    step = away(text, replicas=replicas, **fields)
    return replace(step, stage=replace(step.stage, shared=True))


def test_replicas_that_are_lost_leave_it_to_the_others(context: RunContext) -> None:
    step = shared("a", 3)

    def make(_run: FlowRun, before: int) -> State[Any] | None:
        match before:
            case 0:
                return Crashed(message="its node was taken away")
            case 1:
                execute(step, replace(context, elsewhere=None))
                return Completed()
        return None

    with Worker(make, at_least=3) as worker:
        _, error, task = run(step, context)
    assert error is None
    assert task.run_count == 1
    assert len(worker.taken) == 3
    assert read(worker.taken[2]).state_type == StateType.CANCELLED, "it had not begun, and would come to nothing"


def test_replicas_fail_when_all_have_ended_without_the_artifact(context: RunContext) -> None:
    def fail(_run: FlowRun, before: int) -> State[Any]:
        return Failed(message="no room") if before == 1 else Crashed(message="lost")

    with Worker(fail, at_least=2) as worker:
        _, error, _ = run(shared("a", 2), context)
    assert type(error) is WorkerFailedError
    assert f"{worker.taken[1].name} on the pool cpu failed: no room" in str(error)


def test_a_laptop_makes_all_in_its_own_process(context: RunContext) -> None:
    assert dispatch_of_deployment("micro", RUN, context.store, context.stop) is None


def test_a_stage_whose_content_differs_there_is_refused() -> None:
    key = "0" * 64
    with pytest.raises(
        BadInputError, match=r"evolve of micro has the key [0-9a-f]{16} on .* wants 0{16}; bring"
    ) as caught:
        single_stage.fn("evolve", "micro", key=key)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.timeout(1800)
def test_a_real_worker_makes_it(store: Store, tmp_path: Path) -> None:
    """The manifest says whose worker it was."""
    overrides = (f"fine_tuning.evolve.runtime.pool={POOL}",)
    [step] = [step for step in build(load_profile("micro", overrides, smoke=True)) if step.label == "evolve"]
    context = RunContext(store=store, scratch=tmp_path / "scratch")
    worker = threading.Thread(target=_real_worker, args=(tmp_path, context.stop))
    worker.start()
    try:
        context.elsewhere = Dispatch(
            "micro", RunOptions(overrides=overrides, smoke=True), store, context.stop, poll_seconds=1
        )

        @flow(name="recipe", persist_result=False)
        def recipe() -> None:
            gather([submit_stage(step, context, [])])

        recipe()
    finally:
        context.stop.set()
        worker.join()
    manifest = Artifact(store, step.directory).manifest()
    assert manifest is not None
    assert (manifest.provenance.pool, manifest.provenance.pool_worker) == (POOL, "the test's")
    assert manifest.provenance.flow_run != context.flow_run


def _real_worker(folder: Path, stop: threading.Event) -> None:
    """A worker of the pool from the first flow run in its queue until `stop`."""
    with get_client(sync_client=True) as client:
        url = str(client.api_url)
        while not queued(client):
            if stop.wait(0.5):
                return
    start = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    worker = subprocess.Popen(
        [*start, "--name", "the test's"], cwd=folder, env={**os.environ, "PREFECT_API_URL": url}, start_new_session=True
    )
    stop.wait()
    # With the process of the flow run, which would look for its server for another minute.
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
