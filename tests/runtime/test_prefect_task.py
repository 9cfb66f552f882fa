"""What Prefect adds to `execute`: names, states, retries, and an end that tells the cause."""

from __future__ import annotations

import base64
import itertools
import json
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterTaskRunId, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import Artifact, TaskRun
from prefect.settings import PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness

from flows.opened import gather
from flows.prefect_api import PrefectApi
from tasks.artifacts.errors import BadInputError
from tasks.runtime import dashboard
from tasks.runtime.declare import GateResult, Step
from tasks.runtime.execute import RunContext
from tasks.runtime.prefect_task import submit_stage
from tasks.runtime.stage_feed import ENDED, PROGRESS
from tasks.worker.spec import Event
from tests.runtime.conftest import Logs, wait_for
from tests.runtime.errand import errand


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=300):
        yield


def run(steps: Sequence[Step], context: RunContext) -> tuple[list[Any], BaseException | None, dict[str, TaskRun]]:
    """Runs steps as a flow: what they returned, how the flow failed, and the task runs by name."""
    found: dict[str, Any] = {}

    @flow(name="errands", persist_result=False)
    def errands() -> None:
        from prefect.runtime import flow_run

        found["id"] = flow_run.get_id()
        futures: dict[str, Any] = {}
        for step in steps:
            futures[step.key] = submit_stage(step, context, [futures[source.key] for source in step.inputs.values()])
        found["refs"] = gather(futures.values())

    error = None
    try:
        errands()
    except Exception as raised:
        error = raised
    with get_client(sync_client=True) as client:
        runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[found["id"]])))
    return found.get("refs", []), error, {run.name: run for run in runs}


def state_of(run: TaskRun) -> str:
    assert run.state is not None
    return f"{run.state.type.value} {run.state.name}"


def test_made_then_reused(context: RunContext, launches: Logs) -> None:
    first = errand("a", label="first")
    second = errand("b", label="second", inputs={"source": first})
    refs, error, runs = run([first, second], context)
    assert error is None
    assert {name: state_of(task) for name, task in runs.items()} == {
        "first": "COMPLETED Completed",
        "second": "COMPLETED Completed",
    }
    # Prefect would take a slot for each before the stage begins, from a server that may be away then.
    assert runs["first"].tags == []
    assert artifacts_of(runs["first"]).keys() == {"stage-first"}
    again, error, runs = run([first, second], context)
    assert error is None
    assert [ref.digest for ref in again] == [ref.digest for ref in refs]
    assert {name: state_of(task) for name, task in runs.items()} == dict.fromkeys(runs, "COMPLETED Reused")
    state = runs["first"].state
    assert state is not None
    assert state.message == f"{refs[0].uri} was finished already: key {first.key}, digest {refs[0].digest}"
    assert artifacts_of(runs["first"]) == {}, "its state says all"
    assert len(launches(first)) == len(launches(second)) == 1


def test_an_unexpected_error_is_shown_without_the_credential_in_its_text(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORE_PASSWORD", "bright-blue-whale")

    def fail(_step: Step) -> None:
        raise OSError(5, "cannot reach it", "https://me:bright-blue-whale@host/file")

    context.approve = fail
    _, error, runs = run([errand("a", label="fails")], context)
    state = runs["fails"].state
    assert state is not None
    assert state.message is not None
    assert "OSError: [Errno 5] cannot reach it: 'https://[redacted]@host/file'" in state.message
    assert "whale" not in str(error)
    assert "whale" in str(error.__cause__ if error is not None else "")


def test_what_another_run_finishes_meanwhile_is_shared(context: RunContext, launches: Logs) -> None:
    step = errand("a", label="both", behaviour="work", steps=60)
    states: list[str] = []
    threads = [
        threading.Thread(target=lambda: states.append(state_of(run([step], context)[2]["both"]))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(states) == ["COMPLETED Completed", "COMPLETED Shared"]
    assert len(launches(step)) == 1


@pytest.mark.parametrize("behaviour", ["transient", "preempted", "killed"])
def test_what_may_pass_is_tried_again(context: RunContext, launches: Logs, behaviour: str) -> None:
    step = errand("a", behaviour=behaviour, retries=2, retry_delay_seconds=0.1)
    _, error, runs = run([step], context)
    assert error is not None
    assert runs["errand"].run_count == 3
    assert len(launches(step)) == 3


@pytest.mark.parametrize("behaviour", ["bad_input", "out_of_memory", "traceback"])
def test_what_will_not_pass_is_not_tried_again(context: RunContext, launches: Logs, behaviour: str) -> None:
    step = errand("a", behaviour=behaviour, retries=2, retry_delay_seconds=0.1)
    _, error, runs = run([step], context)
    assert error is not None
    assert runs["errand"].run_count == 1
    assert len(launches(step)) == 1


def artifacts_of(run: TaskRun) -> dict[str, Artifact]:
    """What a task run left on the dashboard, by key."""
    wanted = ArtifactFilter(task_run_id=ArtifactFilterTaskRunId(any_=[run.id]))
    with get_client(sync_client=True) as client:
        return {str(artifact.key): artifact for artifact in client.read_artifacts(artifact_filter=wanted)}


def test_a_failed_gate_is_not_tried_again_and_stands_on_the_dashboard(context: RunContext) -> None:
    step = errand("too long", max_length=3, retries=2, retry_delay_seconds=0.1)
    _, error, runs = run([step], context)
    assert getattr(error, "exit_code", None) == 3
    assert runs["errand"].run_count == 1
    table = artifacts_of(runs["errand"])["gates-errand"]
    assert context.store.locate(step.directory) in str(table.description)
    [row] = json.loads(str(table.data))
    assert (row["gate"], row["passed"], row["value"], row["wants"]) == ("max_length", "NO", 8, "<= 3")
    assert str(artifacts_of(runs["errand"])["failure-errand"].description) == str(error).partition("\n")[0]


def test_a_failure_stands_on_the_dashboard_with_the_end_of_the_log(context: RunContext) -> None:
    _, error, runs = run([errand("a", behaviour="traceback")], context)
    assert error is not None
    failure = artifacts_of(runs["errand"])["failure-errand"]
    sentence, _, tail = str(error).partition("\n")
    assert failure.description == sentence
    assert "KeyError" in sentence
    assert f"```\n{tail}\n```" in str(failure.data)
    assert "line 199" in tail
    assert "Mend the cause and run the same command again" in tail


def test_the_flow_fails_with_the_cause_and_what_needs_it_does_not_run(context: RunContext, launches: Logs) -> None:
    bad = errand("a", label="bad", behaviour="bad_input")
    needs = errand("b", label="needs", inputs={"source": bad})
    free = errand("c", label="free")
    _, error, runs = run([bad, needs, free], context)
    assert type(error) is BadInputError
    assert str(error) == "bad: the recipe asks for the impossible; ask for less"
    assert state_of(runs["bad"]) == "FAILED Failed"
    assert state_of(runs["free"]) == "COMPLETED Completed", "a failure ends no branch that does not need it"
    assert launches(needs) == []
    assert state_of(runs["needs"]) == "CANCELLED Cancelled", "pending it would look as if it were about to begin"


def test_progress_and_curves_are_on_the_dashboard(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "_PROGRESS_SECONDS", 0)
    _, error, runs = run([errand("a", label="drawn", behaviour="work", steps=4)], context)
    assert error is None
    artifacts = artifacts_of(runs["drawn"])
    assert artifacts.keys() == {"drawn", "curves-drawn", "stage-drawn"}, "one of each, however often it changed"
    progress = artifacts["drawn"]
    assert (progress.type, progress.data) == ("progress", 100)
    assert progress.description == "4 of 4 steps, 20 tokens/s, done"
    svg = base64.b64decode(str(artifacts["curves-drawn"].data).partition("base64,")[2].strip(")\n"))
    assert b">squares</text>" in svg
    assert b">9</text>" in svg


def test_a_stage_that_ends_early_shows_how_far_it_came(context: RunContext) -> None:
    context.stop = threading.Event()
    watch = context.watch

    def stop_soon(of: Step, event: Event) -> None:
        watch(of, event)
        if event.kind == "progress" and event.done == 3:
            context.stop.set()

    context.watch = stop_soon
    _, error, runs = run([errand("a", label="ended", behaviour="work", steps=2000)], context)
    assert error is not None
    progress = artifacts_of(runs["ended"])["ended"]
    said = re.fullmatch(r"([\d,]+) of 2,000 steps, 20 tokens/s, stopped", str(progress.description))
    assert said is not None, progress.description
    assert int(said[1].replace(",", "")) >= 3


def test_what_is_said_beside_a_progress() -> None:
    values = {"loss": 1.23456, "tokens_per_second": 41234.5, "mfu": 0.4123, "data_wait": 0.0312, "seconds_left": 5000}
    assert dashboard._said(values, 5000) == (
        ", 41,234 tokens/s, 1 h 23 min left, loss 1.235, 41.2 % of the peak FLOP/s, 3.1 % of the time waiting for data"
    )
    assert [dashboard._duration(seconds) for seconds in (59, 61, 3599, 86400, 864000)] == [
        "59 s", "1 min", "1 h 0 min", "24 h 0 min", "10.0 days",
    ]  # fmt: skip


def test_a_table_of_gates_is_readable() -> None:
    rows = [dashboard._gate_row(GateResult("g", True, value, 1, "<=", "m")) for value in (0.77908987, 24128.0, None)]
    assert [row["value"] for row in rows] == [0.77909, 24128.0, None]


def test_stages_on_one_host_wait_for_a_slot(context: RunContext, events: list[Event]) -> None:
    context.slots = threading.Semaphore(1)
    steps = [errand(text, label=f"step-{text}", behaviour="work", steps=12) for text in ("a", "b", "c")]
    refs, error, _ = run(steps, context)
    assert error is None
    waited = [event for event in events if event.message.startswith("waiting: as many other stages are at work")]
    assert len(waited) == 2, "each that waits says so, once"
    spans = []
    for step, ref in zip(steps, refs, strict=True):
        assert ref.key == step.key
        entries = list(context.store.list(f"{step.directory}/data"))
        spans.append(max(entry.modified for entry in entries))
    spans.sort()
    # Each works for 0.6 s; together they would end within a moment.
    assert all(later - earlier >= 0.5 for earlier, later in itertools.pairwise(spans))


def told_of(label: str) -> list[str]:
    """What the event feed has of a stage, oldest first."""
    # The newest 50 that the server gives: the stages of other tests are in the same feed.
    wanted = {"filter": {"event": {"prefix": ["medius.stage."]}, "order": "DESC"}, "limit": 50}
    events = PrefectApi(str(PREFECT_API_URL.value())).post("/events/filter", wanted)["events"]
    own = [event for event in events if event["resource"]["prefect.resource.id"].endswith(f".{label}")]
    return [event["event"] for event in reversed(own)]


def test_a_stage_that_never_tells_of_progress_is_in_the_feed_from_launch_to_end(context: RunContext) -> None:
    """Without the first, no alert misses the progress; without the second, one would for ever."""
    _, error, _ = run([errand("a", label="silent", behaviour="bad_input")], context)
    assert error is not None
    wait_for(lambda: told_of("silent") == [PROGRESS, ENDED], 120, "launch and end")


def test_a_stage_that_is_stopped_has_ended_for_the_feed_before_its_checkpoint_is_saved(
    context: RunContext, tmp_path: Path
) -> None:
    context.stop = threading.Event()
    watch = context.watch

    def stop_soon(of: Step, event: Event) -> None:
        watch(of, event)
        if event.kind == "progress" and event.done == 3:
            context.stop.set()

    context.watch = stop_soon
    save = tmp_path / "save"
    step = errand(
        "a", label="slowly-saved", behaviour="work", steps=2000, save_when=str(save), stop_grace_seconds=300
    )  # fmt: skip
    thread = threading.Thread(target=run, args=([step], context))
    thread.start()
    try:
        wait_for(lambda: ENDED in told_of("slowly-saved"), 120, "the end")
        assert thread.is_alive(), "its worker still saves"
        assert told_of("slowly-saved")[-1] == ENDED
    finally:
        save.touch()
        thread.join()
    assert PROGRESS not in told_of("slowly-saved")[told_of("slowly-saved").index(ENDED) :]
