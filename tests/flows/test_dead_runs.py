"""Runs that end without a word: which are judged dead, and (slow) what a real server and store then say of them."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows import prefect_api, stack_processes
from flows.ablate import ablation
from flows.dead_runs import FLOWS, DeadRuns, own_workers
from flows.heartbeats import OneLook
from flows.maintenance import collect_garbage, mark_dead_runs, verify_profile
from flows.pipeline import distillation
from flows.prefect_api import PrefectApi
from flows.single_stage import single_stage
from flows.stack import CHECKOUT
from flows.stack_environment import (
    OWN_SERVER_VARIABLE,
    PASSWORD_VARIABLE,
    client_environment,
    keep_password,
    service_environment,
)
from flows.stack_module import run_module
from flows.stack_processes import MARK, StackProcess, end_tree, end_work, wait_until
from flows.stack_services import POOLS, Ports, answers, prefect_command, worker_command, worker_name
from tasks.artifacts.errors import MediusError
from tasks.artifacts.process_identity import ProcessIdentity, own_process
from tasks.artifacts.runs import RunRecord, read_run, write_run
from tasks.artifacts.store import Store, open_store
from tests.seaweed import free_ports

HERE = own_process()
GONE = HERE.model_copy(update={"process_started": "1"})
ELSEWHERE = GONE.model_copy(update={"host": "another"})
OURS = frozenset({"medius-here"})
API = PrefectApi("http://127.0.0.1:1/api")


def run_of(
    state: str = "RUNNING", age: float = 3600, worker: str | None = "medius-here", **more: Any
) -> dict[str, Any]:
    """A flow run as the server tells it."""
    moment = (datetime.now(UTC) - timedelta(seconds=age)).isoformat()
    return {
        "id": "r", "name": "n", "state_type": state, "state": {"timestamp": moment}, "deployment_id": "d",
        "labels": {} if worker is None else {"prefect.worker.name": worker}, **more,
    }  # fmt: skip


def record_of(process: ProcessIdentity | None, age: float = 3590, **more: Any) -> RunRecord:
    started = (datetime.now(UTC) - timedelta(seconds=age)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return RunRecord(run="r", profile="p", config={}, steps=(), started=started, process=process, **more)


@pytest.mark.parametrize(
    ("workers", "run", "record", "dead"),
    [
        pytest.param(OURS, {}, None, True, id="killed before its record"),
        pytest.param(OURS, {}, {"process": GONE}, True, id="killed"),
        pytest.param(OURS, {}, {"process": HERE}, False, id="its process lives"),
        pytest.param(OURS, {"age": 10}, {"process": GONE}, False, id="its state is of a moment ago"),
        pytest.param(OURS, {"state": "PENDING", "age": 90}, None, False, id="its process may be about to start"),
        pytest.param(
            OURS, {"state": "PENDING", "worker": None}, None, True, id="taken by a worker that was killed at once"
        ),
        pytest.param(OURS, {"worker": "gpu-there"}, None, False, id="another host's worker took it"),
        pytest.param(OURS, {"deployment_id": None}, None, False, id="from a command line, without a record"),
        pytest.param(OURS, {}, {"process": ELSEWHERE}, True, id="ours before the host was started again"),
        pytest.param(frozenset(), {"deployment_id": None}, {"process": GONE}, True, id="from a command line here"),
        pytest.param(frozenset(), {}, None, False, id="on a shared server, without a record"),
        pytest.param(frozenset(), {}, {"process": ELSEWHERE}, False, id="on another host"),
        pytest.param(frozenset(), {}, {"process": GONE, "age": 9000}, False, id="retried, perhaps on another host"),
        pytest.param(frozenset(), {"state": "PAUSED", "age": 90}, {"process": GONE}, True, id="killed while it waited"),
        pytest.param(frozenset(), {"state": "PAUSED"}, {"process": ELSEWHERE}, False, id="waits on another host"),
        pytest.param(OURS, {"state": "PAUSED"}, {"process": HERE}, False, id="waits for an answer"),
        pytest.param(
            OURS, {"state": "PAUSED"}, {"process": ELSEWHERE}, True, id="waited before the host was restarted"
        ),
        pytest.param(frozenset(), {"state": "PENDING"}, {"process": GONE}, False, id="about to be retried somewhere"),
    ],
)
def test_only_what_is_known_dead_is_judged_dead(
    store: Store, workers: frozenset[str], run: dict[str, Any], record: dict[str, Any] | None, dead: bool
) -> None:
    # Made here and not with the list of cases, as their moments are counted back from now.
    case = run_of(**run), None if record is None else record_of(**record)
    assert DeadRuns(API, store, workers)._is_dead(*case) is dead
    assert not DeadRuns(API, store, workers, _living={"r"})._is_dead(*case)


class Silent:
    """A feed in which every run has been silent for two minutes."""

    def silent(self, _run: str, since: datetime) -> float | None:
        return 105 if datetime.now(UTC) - since > timedelta(seconds=105) else None


@pytest.mark.parametrize(
    ("run", "process", "given_up"),
    [
        pytest.param({"age": 120}, ELSEWHERE, True, id="of another host"),
        # Its state is newer than its record: it may as well be a retry on another host, which would be heard.
        pytest.param({"age": 120}, GONE, True, id="approved, then killed"),
        pytest.param({"state": "PAUSED"}, ELSEWHERE, True, id="waited for an answer there"),
        pytest.param({"age": 10}, GONE, False, id="retried a moment ago"),
        pytest.param({}, HERE, False, id="its process lives"),
        pytest.param({"deployment_id": None}, ELSEWHERE, False, id="of a command line"),
        pytest.param({"state": "PENDING"}, ELSEWHERE, False, id="not begun"),
    ],
)
def test_silence_gives_up_what_no_living_process_here_stands_for(
    store: Store, run: dict[str, Any], process: ProcessIdentity, given_up: bool
) -> None:
    look, case = DeadRuns(API, store, feed=Silent()), (run_of(**run), record_of(process))  # type: ignore[arg-type]
    assert not look._is_dead(*case)
    assert look._silence(*case) == (105 if given_up else None)
    look._living = {"r"}
    assert look._silence(*case) is None


def test_a_server_that_does_not_answer_is_one_sentence(store: Store) -> None:
    with pytest.raises(MediusError, match=r"the Prefect server at http://127\.0\.0\.1:1/api does not answer"):
        DeadRuns(API, store).mark()


def test_a_busy_server_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = [503, 503, 200]

    class Busy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(answered.pop(0))
            self.end_headers()
            self.wfile.write(b"[]")

    monkeypatch.setattr(prefect_api, "_PAUSES", (0.0, 0.0))
    with HTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        api = PrefectApi(f"http://127.0.0.1:{server.server_port}/api")
        assert api.post("/flow_runs/filter", {}) == []
        answered[:] = [503, 503, 503]
        with pytest.raises(MediusError, match="answers 503"):
            api.post("/flow_runs/filter", {})
        server.shutdown()


def test_only_in_a_stack_all_workers_are_this_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = "http://127.0.0.1:4200/api"
    stack = service_environment({"PREFECT_API_URL": server}, tmp_path, "token")
    for name in ("PREFECT_API_URL", MARK, OWN_SERVER_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    assert own_workers() == frozenset()
    monkeypatch.setenv("PREFECT_API_URL", server)
    monkeypatch.setenv(MARK, "a worker's own, of flows/pool_worker.py")
    assert own_workers() == frozenset(), "others may take runs of a server that is only worked for"
    monkeypatch.setenv(OWN_SERVER_VARIABLE, stack[OWN_SERVER_VARIABLE])
    assert own_workers() == {worker_name(pool) for pool in POOLS}
    monkeypatch.setenv("PREFECT_API_URL", "https://team.example/api")
    assert own_workers() == frozenset(), "another server than the stack's"


def test_every_flow_of_ours_is_judged() -> None:
    names = [
        flow.name for flow in (distillation, single_stage, ablation, collect_garbage, verify_profile, mark_dead_runs)
    ]
    assert set(FLOWS) == set(names)
    declared = [line for file in (CHECKOUT / "flows").glob("*.py") for line in file.read_text().splitlines()]
    assert sum(line.startswith("@flow") for line in declared) == len(names)


class Server:
    """A Prefect server with a password, and workers for two pools, in a folder; a store beside them."""

    def __init__(self, folder: Path) -> None:
        self.token = uuid.uuid4().hex
        self.folder = folder
        self.ports = Ports(prefect=free_ports(30)[-1])
        client = client_environment(folder, self.ports)
        own = service_environment(client, folder / "prefect", self.token)
        self.environment = {**own, "MEDIUS_STORE": str(folder / "store")}
        self.store = open_store(str(folder / "store"))
        self.api = PrefectApi.of(self.environment)
        self.processes: dict[str, StackProcess] = {}

    def start(self, name: str, command: list[str]) -> None:
        log = self.folder / f"{name}.log"
        self.processes[name], _ = stack_processes.start(name, command, self.environment, self.folder, log)

    def start_server(self) -> None:
        self.start("prefect", prefect_command(self.ports))
        assert wait_until(lambda: answers(self.ports.prefect, "/api/health", 200), 600)

    def kill(self, name: str) -> None:
        kill(self.processes[name].pid)

    def deploy(self, *deployments: str) -> None:
        """Makes the pools and these deployments, each one line of YAML."""
        file = self.folder / "prefect.yaml"
        file.write_text("name: test\ndeployments:\n" + "".join(f"  - {line}\n" for line in deployments))
        shutil.copy(CHECKOUT / "infra" / "automations.yaml", self.folder)
        ran = run_module(
            "flows.stack_deploy", str(file), "medius", "cpu", "gpu", environment=self.environment, seconds=300
        )
        assert ran.fault is None, ran.err

    def run(self) -> str:
        """A run of the deployment `sleeper`, in its task."""
        [run] = self.runs(1)
        return run

    def runs(self, count: int) -> list[str]:
        """As many runs at once, each in its task."""
        [deployment] = self.api.post("/deployments/filter", {"deployments": {"name": {"any_": ["sleeper"]}}})
        create = f"/deployments/{deployment['id']}/create_flow_run"
        runs = [str(self.api.post(create, {})["id"]) for _ in range(count)]
        for run in runs:
            assert wait_until((self.folder / f"{run}.pid").exists, 400), (self.folder / "medius.log").read_text()
        assert wait_until(lambda: all(self.tasks(run) == ["RUNNING"] for run in runs), 60)
        return runs

    def pid(self, run: str) -> int:
        return int((self.folder / f"{run}.pid").read_text())

    def state(self, run: str) -> str:
        [found] = self.api.post("/flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
        return str(found["state_type"])

    def message(self, run: str) -> str:
        [found] = self.api.post("/flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
        return str(found["state"]["message"])

    def tasks(self, run: str) -> list[str]:
        found = self.api.post("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
        return [task["state_type"] for task in found]

    def record(self, run: str) -> str:
        record = read_run(self.store, run)
        assert record is not None
        return record.state

    def says(self, run: str) -> tuple[str, list[str], str]:
        return self.state(run), self.tasks(run), self.record(run)

    def mark(self, *, every_record: bool = False) -> list[str]:
        said: list[str] = []
        workers = frozenset({worker_name("medius"), worker_name("cpu")})
        DeadRuns(self.api, self.store, workers, 0, every_record, said.append).mark()
        return said


def is_marked(server: Server, run: str) -> bool:
    """Whether a look at the server marks it, once what the run had started is gone, too."""
    said: list[str] = []
    marked = wait_until(lambda: bool(said.extend(server.mark())) or server.says(run) == DEAD, 90)
    assert marked, (said, server.says(run), stack_processes.living_runs())
    return marked


def kill(pid: int) -> None:
    """kill -9, and waits for the end."""
    os.kill(pid, signal.SIGKILL)
    started = stack_processes.process_started(pid)
    assert wait_until(lambda: stack_processes.process_started(pid) != started or started is None, 30)


SLEEPER = "{name: sleeper, entrypoint: 'sleeper.py:sleeper', work_pool: {name: medius}}"
MARKER = (
    "{name: every-minute, entrypoint: flows.maintenance.mark_dead_runs, work_pool: {name: cpu}, "
    "schedules: [{interval: 60, slug: every-minute}]}"
)
LIVING = ("RUNNING", ["RUNNING"], "running")
DEAD = ("CRASHED", ["CRASHED"], "interrupted")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(Path(__file__).with_name("sleeper.py"), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv(PASSWORD_VARIABLE, "medius:secret")
        keep_password(folder, running=False)
        patch.delenv(PASSWORD_VARIABLE)
        started = Server(folder)
        try:
            started.start_server()
            started.deploy(SLEEPER)
            started.start("medius", worker_command("medius"))
            yield started
        finally:
            end_work(started.token, set(), set(), 0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_was_killed_is_marked_and_what_lives_is_not(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        server.api.post("/work_pools/filter", {"work_pools": {"name": {"any_": ["gpu"]}}})[0]["concurrency_limit"] == 1
    )
    with pytest.raises(MediusError, match="refuses the password"):
        PrefectApi(server.api.url).post("/flow_runs/filter", {})
    first, living, last = server.runs(3)
    assert server.mark() == []

    kill(server.pid(first))
    assert wait_until(lambda: server.state(first) == "CRASHED", 120), "the worker lives, and sees it"
    assert server.says(first) == ("CRASHED", ["RUNNING"], "running")
    assert is_marked(server, first)

    server.kill("medius")
    kill(server.pid(last))
    assert server.says(last) == LIVING, "nobody is left to say so"
    end_tree(server.token, server.processes["prefect"].pid, 30)
    server.start_server()
    assert is_marked(server, last)
    assert server.says(living) == LIVING, "it has outlived its worker and an outage of the server"

    # Beyond one page; some of them are nobody's here, and one was only not heard of.
    monkeypatch.setattr(prefect_api, "_PAGE", 3)
    [flow] = server.api.post("/flows/filter", {"flows": {"name": {"any_": ["distillation"]}}})
    [deployment] = server.api.post("/deployments/filter", {})

    def made(state: str, **more: Any) -> str:
        body = {"flow_id": flow["id"], "deployment_id": deployment["id"], "state": {"type": state}, **more}
        return str(server.api.post("/flow_runs/", body)["id"])

    ours = [made("PENDING") for _ in range(5)]
    cancelled, theirs = made("CANCELLING"), made("RUNNING", labels={"prefect.worker.name": "theirs"})
    line, finished = made("RUNNING", deployment_id=None), made("RUNNING")
    foreign = made("PENDING", flow_id=server.api.post("/flows/", {"name": "somebody-elses"})["id"])
    write_run(server.store, record_of(GONE, 0, state="finished").model_copy(update={"run": finished}))
    write_run(server.store, record_of(GONE).model_copy(update={"run": "unknown-to-the-server"}))
    said = server.mark(every_record=True)
    assert [server.state(run) for run in ours] == ["CRASHED"] * 5
    assert server.state(cancelled) == "CANCELLED"
    assert server.state(finished) == "COMPLETED"
    assert [server.state(run) for run in (theirs, line)] == ["RUNNING", "RUNNING"]
    assert server.state(foreign) == "PENDING", "it is no flow of ours"
    assert server.record("unknown-to-the-server") == "interrupted"
    assert any("unknown-to-the-server" in sentence for sentence in said)
    assert server.says(living) == LIVING
    kill(server.pid(living))
    assert is_marked(server, living)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_silent_run_of_another_host_is_marked_and_one_that_speaks_is_not(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    [flow] = server.api.post("/flows/filter", {"flows": {"name": {"any_": ["distillation"]}}})
    [deployment] = server.api.post("/deployments/filter", {"deployments": {"name": {"any_": ["sleeper"]}}})

    def made(**more: Any) -> str:
        labels = {"prefect.worker.name": "medius-there"}
        body = {"flow_id": flow["id"], "deployment_id": deployment["id"], "state": {"type": "RUNNING"}}
        return str(server.api.post("/flow_runs/", {**body, "labels": labels, **more})["id"])

    def beat(run: str, *seconds_ago: float) -> None:
        now = datetime.now(UTC)
        events = [
            {
                "id": str(uuid.uuid4()),
                "event": "prefect.flow-run.heartbeat",
                "occurred": (now - timedelta(seconds=ago)).isoformat(),
                "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"},
            }
            for ago in seconds_ago
        ]
        server.api.post("/events", events)

    silent, mute, speaks, line = made(), made(), made(), made(deployment_id=None)
    write_run(server.store, record_of(ELSEWHERE, 0).model_copy(update={"run": silent}))
    for run in (silent, line):
        # By the clock of a host that is ahead: what counts is when they came.
        beat(run, -600, -601)
    # It sends one in 50 s.
    beat(speaks, 100, 50, 0)
    said: list[str] = []
    monkeypatch.setattr(OneLook, "_WINDOW_SECONDS", 3)

    def look() -> str:
        # As each look of the deployment, it is itself in the feed.
        made(state={"type": "COMPLETED"})
        feed = OneLook(server.api, 1)
        DeadRuns(server.api, server.store, frozenset(), 60, tell=said.append, feed=feed).mark()
        return server.state(silent)

    assert wait_until(lambda: look() == "CRASHED", 60), said
    assert server.record(silent) == "interrupted"
    assert server.message(silent).startswith("lost: no heartbeat for 4 s, its host is gone or cut off; a retry")
    assert [server.state(run) for run in (mute, speaks, line)] == ["RUNNING"] * 3
    for run in (mute, speaks, line):
        server.api.post(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLED"}, "force": True})


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_whose_worker_was_killed_with_it_is_marked_within_three_minutes(server: Server) -> None:
    if not server.processes["medius"].alive():
        server.start("medius", worker_command("medius"))
    server.start("cpu", worker_command("cpu"))
    run = server.run()
    server.deploy(SLEEPER, MARKER)
    looks = {"flows": {"name": {"any_": ["mark-dead-runs"]}}, "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    assert wait_until(lambda: server.api.post("/flow_runs/filter", looks) != [], 400), "the schedule has begun"
    assert server.says(run) == LIVING
    server.kill("medius")
    kill(server.pid(run))
    killed = time.monotonic()
    assert wait_until(lambda: server.says(run) == DEAD, 180)
    print(f"marked after {time.monotonic() - killed:.0f} s")
