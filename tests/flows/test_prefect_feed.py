"""What alerts and approvals hang on, on a real Prefect server: blocks, the ends of lost stages, who paused a run."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.server.events.schemas.events import Resource, ResourceSpecification
from prefect.settings import PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness
from rich.console import Console

from flows import automations
from flows.answering import answer
from flows.approval_rule import PAUSE_KEY
from flows.automations import read_alerts
from flows.child_run import ChildRun
from flows.dead_runs import DeadRuns
from flows.heartbeats import Beats
from flows.prefect_api import PrefectApi
from flows.stack import CHECKOUT
from flows.stack_deploy import deploy, make_pools
from flows.stack_services import ALERT_BLOCK_VARIABLE
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.process_identity import own_process
from tasks.artifacts.runs import RunRecord, read_run, write_run
from tasks.artifacts.store import Store
from tasks.artifacts.timestamp import timestamp
from tasks.runtime.stage_feed import ENDED
from tests.runtime.conftest import wait_for


@pytest.fixture(scope="module", autouse=True)
def api() -> Iterator[PrefectApi]:
    with prefect_test_harness(server_startup_timeout=300):
        yield PrefectApi(str(PREFECT_API_URL.value()))


def made(api: PrefectApi, state: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A flow run in this state."""
    flow = api.post("/flows/", {"name": "distillation"})["id"]
    run: dict[str, Any] = api.post("/flow_runs/", {"flow_id": flow, "name": "lost", "state": state, **more})
    return run


def state_of(api: PrefectApi, run: dict[str, Any]) -> dict[str, Any]:
    [found] = api.post("/flow_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    state: dict[str, Any] = found["state"]
    return state


def record_killed(store: Store, run: dict[str, Any]) -> None:
    gone = own_process().model_copy(update={"process_started": "1"})
    write_run(store, RunRecord(run=run["id"], profile="p", config={}, steps=(), started=timestamp(), process=gone))


def test_a_block_that_is_not_there_yet_keeps_no_deployment_from_being_made(
    api: PrefectApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(CHECKOUT)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setenv(ALERT_BLOCK_VARIABLE, "slack-webhook/nobody")
    shutil.copy("infra/automations.yaml", tmp_path)
    file = tmp_path / "prefect.yaml"
    file.write_text(
        "name: test\ndeployments:\n"
        "  - {name: look, entrypoint: flows.maintenance.mark_dead_runs, work_pool: {name: cpu}}\n"
    )
    make_pools(["cpu"])
    deploy(file)
    [found] = api.post("/deployments/filter", {"deployments": {"name": {"any_": ["look"]}}})
    assert found["work_pool_name"] == "cpu"
    with get_client(sync_client=True) as client:
        automations_there = {automation.name for automation in client.read_automations()}
    assert automations_there == {alert.name for alert in read_alerts(tmp_path / "automations.yaml")}
    [said] = [line for line in capsys.readouterr().err.splitlines() if line.startswith(ALERT_BLOCK_VARIABLE)]
    assert "the Prefect server has no such block" in said


def test_alerts_without_a_file_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["flows.automations"])
    with pytest.raises(SystemExit, match=r"name the file with the alerts: python -m flows\.automations"):
        automations.main()


def test_the_stages_of_a_lost_run_have_ended_for_the_feed(api: PrefectApi, store: Store) -> None:
    lost = made(api, {"type": "RUNNING"})

    def task(name: str, state: str) -> None:
        body = {
            "flow_run_id": lost["id"], "name": name, "task_key": name, "dynamic_key": name, "state": {"type": state}
        }  # fmt: skip
        api.post("/task_runs/", body)

    task("distill-qwen", "RUNNING")
    task("fuse", "PENDING")
    DeadRuns(api, store, tell=lambda _said: None)._end(lost, None, "gone")

    def ended() -> list[str]:
        feed = api.post("/events/filter", {"filter": {"event": {"name": [ENDED]}}})["events"]
        return [event["resource"]["prefect.resource.id"] for event in feed]

    wait_for(lambda: ended() == [f"medius.stage.{lost['id']}.distill-qwen"], 120, "the end of the stage that ran")


def told_of_crash(message: str) -> set[str]:
    """Which alerts Prefect's own matching lets fire when a run crashes with this message."""
    resource = Resource({"prefect.resource.id": "prefect.flow-run.r", "prefect.state-message": message})
    alerts = read_alerts(CHECKOUT / "infra" / "automations.yaml")
    crashes = [alert for alert in alerts if alert.trigger["expect"] == ["prefect.flow-run.Crashed"]]
    return {alert.name for alert in crashes if ResourceSpecification(alert.trigger["match"]).matches(resource)}


class Silent:
    """A feed in which every run has gone silent."""

    def silent(self, _run: str, _since: datetime) -> float:
        return 0.0


def test_a_run_that_is_given_up_is_told_of_as_lost_and_no_other(api: PrefectApi, store: Store) -> None:
    deployment = api.post("/deployments/", {"flow_id": made(api, {"type": "SCHEDULED"})["flow_id"], "name": "d"})["id"]
    there = made(api, {"type": "RUNNING"}, deployment_id=deployment)
    dispatched, process = made(api, {"type": "RUNNING"}), made(api, {"type": "RUNNING"})
    record_killed(store, process)
    DeadRuns(api, store, settled_seconds=0, tell=lambda _said: None, feed=Silent()).mark()  # type: ignore[arg-type]
    with get_client(sync_client=True) as client:
        ChildRun(client.read_flow_run(UUID(dispatched["id"]))).give_up(client, 150)
    for run in (there, process, dispatched):
        state = state_of(api, run)
        assert state["type"] == "CRASHED"
        assert told_of_crash(state["message"]) == {"medius: run lost"}
    assert told_of_crash("Process for flow run exited with status code: -9") == {"medius: run crashed"}


def test_heartbeats_are_those_that_the_server_received_whatever_their_hosts_clocks_say(api: PrefectApi) -> None:
    began = api.now()
    assert abs((began - datetime.now(UTC)).total_seconds()) < 60

    def heard(run: str, wrong: timedelta) -> Beats | None:
        name = f"prefect.flow-run.{run}"
        event = {"event": "prefect.flow-run.heartbeat", "resource": {"prefect.resource.id": name}}
        api.post("/events", [{**event, "id": str(uuid4()), "occurred": (datetime.now(UTC) + wrong).isoformat()}])
        wait_for(lambda: Beats.of(api, run, began) is not None, 60, "the heartbeat in the feed")
        return Beats.of(api, run, began)

    for wrong in (timedelta(minutes=-10), timedelta(minutes=10)):
        beats = heard(str(uuid4()), wrong)
        assert beats is not None
        assert began - timedelta(seconds=2) <= beats.received <= api.now() + timedelta(seconds=2)


def test_a_run_that_somebody_else_paused_is_neither_resumed_nor_marked(api: PrefectApi, store: Store) -> None:
    paused = made(api, {"type": "PAUSED", "state_details": {"pause_key": "a maintenance window"}})
    record_killed(store, paused)
    said = io.StringIO()
    answer(api, store, None, reject=False, console=Console(file=said))
    assert said.getvalue() == "no run waits for an approval\n"
    with pytest.raises(BadInputError, match="no run 'lost' waits for an approval"):
        answer(api, store, "lost", reject=False, console=Console())
    DeadRuns(api, store, settled_seconds=0).mark()
    assert state_of(api, paused)["type"] == "PAUSED"


def test_a_run_that_was_killed_while_it_waited_takes_no_answer_and_is_marked(api: PrefectApi, store: Store) -> None:
    paused = made(api, {"type": "PAUSED", "state_details": {"pause_key": f"{PAUSE_KEY}0123-1-1"}})
    record_killed(store, paused)
    with pytest.raises(BadInputError, match=r"the process of lost .* is gone, so nothing takes the answer"):
        answer(api, store, paused["id"], reject=False, console=Console())
    assert state_of(api, paused)["type"] == "PAUSED"
    DeadRuns(api, store, settled_seconds=0).mark()
    state = state_of(api, paused)
    assert state["type"] == "CRASHED"
    assert state["message"].startswith("lost: its process is gone")
    assert "it waited for an approval, for which a retry, or a new run, asks again" in state["message"]
    record = read_run(store, paused["id"])
    assert record is not None
    assert (record.state, record.message) == ("interrupted", state["message"])
