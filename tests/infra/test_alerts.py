"""infra/automations.yaml on a real server: made once, and each alert fires and reaches a notification block."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from prefect import flow
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows.automations import Alert, deploy_alerts, read_alerts
from flows.dead_runs import DeadRuns
from flows.stack import CHECKOUT
from tasks.artifacts.errors import BadInputError, InterruptedRunError
from tasks.artifacts.process_identity import own_process
from tasks.artifacts.runs import RunRecord, write_run
from tasks.artifacts.store import Store
from tasks.artifacts.timestamp import timestamp
from tasks.runtime import stage_feed
from tasks.runtime.stage_events import StageEvents
from tests.infra.guarded_server import PASSWORD, GuardedServer
from tests.runtime.errand import errand

pytestmark = pytest.mark.slow
FILE = CHECKOUT / "infra" / "automations.yaml"
SHORTEST = 10
"""Seconds below which Prefect takes no alert for silence."""


@pytest.fixture(autouse=True)
def _client(guarded: GuardedServer) -> Iterator[None]:
    with temporary_settings({PREFECT_API_URL: guarded.ports.api, PREFECT_API_AUTH_STRING: PASSWORD}):
        yield


@pytest.fixture
def told() -> Iterator[list[dict[str, Any]]]:
    """What a webhook was told."""
    heard: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    CustomWebhookNotificationBlock(
        name="hook",
        url=f"http://127.0.0.1:{server.server_port}/",
        json_data={"subject": "{{subject}}", "body": "{{body}}"},
    ).save("hook", overwrite=True)
    yield heard
    server.shutdown()


def existing() -> dict[str, Any]:
    with get_client(sync_client=True) as client:
        return {found.name: found for found in client.read_automations()}


def quick(alert: Alert) -> Alert:
    """The same alert with the shortest time to wait for silence."""
    silence = alert.trigger["posture"] == "Proactive"
    return alert.model_copy(update={"trigger": {**alert.trigger, "within": SHORTEST}}) if silence else alert


def test_the_names_of_the_events_are_those_that_stages_emit() -> None:
    text = FILE.read_text()
    for event in (stage_feed.PROGRESS, stage_feed.SLOW, stage_feed.ENDED):
        assert event in text


def test_again_updates_and_doubles_nothing(guarded: GuardedServer) -> None:
    alerts = read_alerts(FILE)
    with get_client(sync_client=True) as client:
        for automation in client.read_automations():
            client.delete_automation(automation.id)
    assert set(deploy_alerts(alerts).values()) == {"created"}
    first = existing()
    assert set(first) == {alert.name for alert in alerts}
    with get_client(sync_client=True) as client:
        client.pause_automation(first[alerts[0].name].id)
        client.create_automation(alerts[1].automation(first[alerts[1].name].actions, enabled=True))
    changed = [alerts[0].model_copy(update={"description": "another"}), *alerts[1:]]
    assert set(deploy_alerts(tuple(changed)).values()) == {"up to date"}
    second = existing()
    with get_client(sync_client=True) as client:
        assert len(client.read_automations()) == len(alerts), "the double is gone"
    assert second[alerts[0].name].id == first[alerts[0].name].id
    assert second[alerts[0].name].description == "another"
    assert not second[alerts[0].name].enabled, "what someone switched off stays off"
    with get_client(sync_client=True) as client:
        client.resume_automation(first[alerts[0].name].id)


def test_a_block_that_is_not_there_is_one_sentence(guarded: GuardedServer) -> None:
    with pytest.raises(BadInputError, match=r"MEDIUS_ALERT_BLOCK is 'slack-webhook/nobody'.*no such block"):
        deploy_alerts(read_alerts(FILE), "slack-webhook/nobody")
    said = guarded.module("flows.automations", str(FILE), MEDIUS_ALERT_BLOCK="slack-webhook/nobody")
    assert said.returncode == 1
    assert len(said.stderr.strip().splitlines()) == 1


def test_each_alert_fires_and_tells_the_block(guarded: GuardedServer, told: list[dict[str, Any]], store: Store) -> None:
    alerts = tuple(quick(alert) for alert in read_alerts(FILE))
    deploy_alerts(alerts, "custom-webhook/hook")

    @flow(name="distillation", flow_run_name="stopped", persist_result=False)
    def stopped() -> None:
        raise InterruptedRunError("distill-qwen was stopped; run the same command again and it goes on")

    # Before one that is told of: what comes of it would have been heard by then.
    with suppress(InterruptedRunError):
        stopped()

    @flow(name="distillation", flow_run_name="failing", persist_result=False)
    def failing() -> None:
        raise BadInputError("the teacher is not there; name one that is")

    with suppress(BadInputError):
        failing()

    @flow(name="distillation", flow_run_name="stalling", persist_result=False)
    def stalling() -> None:
        now = [0.0]
        events = StageEvents(errand("a", label="distill-qwen", min_tokens_per_second=100), lambda: now[0])
        for _ in range(4):
            now[0] += 60
            events.progress(1, 10, "steps", 20.0)

    stalling()
    # A run whose process was never here: what the look for dead runs says of it, and no heartbeat after one.
    api = guarded.api
    flow_id = api.everything("/flows/filter", {"flows": {"name": {"any_": ["distillation"]}}})[0]["id"]
    lost = api.post("/flow_runs/", {"flow_id": flow_id, "name": "lost", "state": {"type": "RUNNING"}})
    emit_event(
        "prefect.flow-run.heartbeat",
        {"prefect.resource.id": f"prefect.flow-run.{lost['id']}", "prefect.resource.name": "lost"},
        related=[
            {
                "prefect.resource.id": f"prefect.flow.{flow_id}",
                "prefect.resource.role": "flow",
                "prefect.resource.name": "distillation",
            }
        ],
    )
    quiet = {"medius: run without heartbeat", "medius: stage stalls", "medius: stage is slow", "medius: run failed"}
    guarded.wait(lambda: quiet <= {entry["subject"] for entry in told}, 180, f"{quiet}, heard {told}")
    gone = own_process().model_copy(update={"process_started": "1"})
    write_run(store, RunRecord(run=lost["id"], profile="p", config={}, steps=(), started=timestamp(), process=gone))
    DeadRuns(api, store, settled_seconds=0).mark()
    ended = api.post("/flow_runs/", {"flow_id": flow_id, "name": "ended", "state": {"type": "RUNNING"}})
    state = {"type": "CRASHED", "name": "Crashed", "message": "exited with status code -9"}
    api.post(f"/flow_runs/{ended['id']}/set_state", {"state": state})
    both = {"medius: run lost", "medius: run crashed"}
    guarded.wait(lambda: both <= {entry["subject"] for entry in told}, 120, f"{both}, heard {told}")
    bodies = {subject: [entry["body"] for entry in told if entry["subject"] == subject] for subject in both}
    [lost_body], [ended_body] = bodies["medius: run lost"], bodies["medius: run crashed"]
    assert "lost: " in lost_body
    assert "ended: exited with status code -9" in ended_body
    failed = [entry["body"] for entry in told if entry["subject"] == "medius: run failed"]
    assert len(failed) == 1, "a stop is no failure, and a lost run is told once, as lost"
    assert "failing: " in failed[0]
    assert "the teacher is not there" in failed[0]
    # The server writes its feed a little later.
    guarded.wait(lambda: triggered(guarded) == {alert.name for alert in alerts}, 60, "all alerts in the feed")


def triggered(guarded: GuardedServer) -> set[str]:
    wanted = {"filter": {"event": {"name": ["prefect.automation.triggered"]}}, "limit": 50}
    found: list[dict[str, Any]] = guarded.api.post("/events/filter", wanted)["events"]
    return {event["resource"]["prefect.resource.name"] for event in found}
