"""A run that waits for an approval, on a real Prefect server: resumed, cancelled, forgotten, two questions at once.

The stages are micro's; their forecast price is next to nothing, and so is the threshold.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import datetime
from threading import Event, Thread
from typing import Any

import pytest
from prefect import flow, task
from prefect.settings import PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness
from rich.console import Console

from flows.answering import answer
from flows.approval import RECORD, Approvals
from flows.approval_pause import PauseForApproval
from flows.approval_rule import ApprovalRule
from flows.dag import build
from flows.opened import gather
from flows.prefect_api import PrefectApi
from flows.profiles import load_profile
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError, InterruptedRunError
from tasks.artifacts.store import Store
from tasks.runtime.execute import RunContext
from tasks.runtime.prefect_task import submit_stage
from tests.runtime.conftest import wait_for


@pytest.fixture(scope="module", autouse=True)
def api() -> Iterator[PrefectApi]:
    with prefect_test_harness(server_startup_timeout=300):
        yield PrefectApi(PREFECT_API_URL.value())


@pytest.fixture
def context(store: Store, tmp_path: Any) -> RunContext:
    return RunContext(store=store, scratch=tmp_path / "scratch", flow_run="here")


@task(task_run_name="beside", persist_result=False)
def beside(ended: Event) -> None:
    """A stage that nobody has to approve."""
    ended.wait(300)


class Waiting:
    """A run of micro's first stages in a thread, with a threshold that its dumps are over."""

    def __init__(self, context: RunContext, until: str, wait_hours: float = 1, beside: Event | None = None) -> None:
        """`beside`: a stage that runs beside them has ended when this is set."""
        loaded = load_profile("micro")
        self.steps = build(loaded, until)
        rule = ApprovalRule(above_usd=1e-12, wait_hours=wait_hours)
        approvals = Approvals(rule, self.steps, context.store)
        context.approve = PauseForApproval(approvals, context.stop, poll_seconds=0.2)
        self.error: BaseException | None = None
        self.id = ""
        self._context = context
        self._beside = beside
        self._thread = Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        @flow(name="asking", flow_run_name="asking", persist_result=False)
        def asking() -> None:
            from prefect.runtime import flow_run

            self.id = flow_run.get_id()
            futures: dict[str, Any] = {}
            for step in self.steps:
                after = [futures[source.key] for source in step.inputs.values()]
                futures[step.key] = submit_stage(step, self._context, after)
            if self._beside is not None:
                futures["beside"] = beside.submit(self._beside)
            gather(futures.values())

        try:
            asking()
        except BaseException as error:
            self.error = error

    def join(self) -> None:
        self._thread.join(300)
        assert not self._thread.is_alive()

    def manifest(self, label: str) -> object:
        [step] = [step for step in self.steps if step.label == label]
        return Artifact(self._context.store, step.directory).manifest()

    def state(self, api: PrefectApi) -> dict[str, Any]:
        [run] = api.everything("/flow_runs/filter", {"flow_runs": {"id": {"any_": [self.id]}}})
        found: dict[str, Any] = run["state"]
        return found

    def wait_until_paused(self, api: PrefectApi, what: str) -> None:
        def paused() -> bool:
            if not self.id:
                return False
            state = self.state(api)
            return state["type"] == "PAUSED" and what in state["message"]

        wait_for(paused, 300, f"the run waits for {what}")


def said_by(api: PrefectApi, store: Store, run: str | None, *, reject: bool = False) -> str:
    text = io.StringIO()
    answer(api, store, run, reject=reject, console=Console(file=text, width=400))
    return text.getvalue()


@pytest.mark.slow
def test_a_run_waits_for_each_answer_and_goes_on_with_it(context: RunContext, api: PrefectApi) -> None:
    assert "no run waits for an approval" in said_by(api, context.store, None)
    # Two dumps, which would begin at one time, and what needs both.
    run = Waiting(context, "distill-qwen")
    run.wait_until_paused(api, "logits-qwen is forecast to take")
    listed = said_by(api, context.store, None)
    assert run.id in listed
    assert f"medius approve {run.id}" in listed
    with pytest.raises(BadInputError, match=rf"no run 'other' waits for an approval; name one of: {run.id}"):
        answer(api, context.store, "other", reject=False, console=Console())
    assert run.manifest("logits-qwen") is None
    assert "goes on" in said_by(api, context.store, run.id)
    run.wait_until_paused(api, "distill-qwen is forecast to take")
    assert run.manifest("logits-qwen") is not None
    # By its name this time, as the dashboard shows it.
    assert "goes on" in said_by(api, context.store, "asking")
    run.join()
    assert run.error is None
    [step] = [step for step in run.steps if step.label == "distill-qwen"]
    assert f"resuming flow run {run.id}" in context.store.get(f"{step.directory}/{RECORD}").decode()
    # Finished stages ask nobody.
    again = Waiting(context, "distill-qwen")
    again.join()
    assert again.error is None


def test_a_rejected_run_ends_resumable_and_the_next_asks_again(context: RunContext, api: PrefectApi) -> None:
    run = Waiting(context, "logits-llama")
    run.wait_until_paused(api, "logits-llama")
    assert "is cancelled" in said_by(api, context.store, run.id, reject=True)
    run.join()
    assert isinstance(run.error, InterruptedRunError)
    assert "was not begun, as it needs an approval and the run is Cancelling" in str(run.error)
    assert run.manifest("logits-llama") is None
    assert run.manifest("corpus-llama") is not None
    again = Waiting(context, "logits-llama")
    again.wait_until_paused(api, "logits-llama")
    context.stop.set()
    again.join()
    assert "the run was stopped" in str(again.error)


def test_an_answer_that_never_comes_ends_the_run_after_what_runs_beside_it(
    context: RunContext, api: PrefectApi
) -> None:
    ended = Event()
    run = Waiting(context, "logits-llama", 3 / 3600, beside=ended)
    try:
        run.wait_until_paused(api, "logits-llama")
        state = run.state(api)
        waits = datetime.fromisoformat(state["state_details"]["pause_timeout"]) - datetime.fromisoformat(
            state["timestamp"]
        )
        assert waits.total_seconds() > 300, "the server does not end it first, which looks for these every 5 s"
        wait_for(lambda: tasks_of(api, run.id).get("logits-llama") == "FAILED", 120, "the end of the wait")
        assert run.state(api)["type"] == "RUNNING", "it cannot be retried yet"
        assert tasks_of(api, run.id)["beside"] == "RUNNING"
    finally:
        ended.set()
    run.join()
    assert isinstance(run.error, InterruptedRunError)
    assert "nobody approved it within" in str(run.error)
    assert run.state(api)["type"] == "FAILED"


def test_after_one_answer_that_never_came_nothing_more_is_asked(
    context: RunContext, api: PrefectApi, caplog: pytest.LogCaptureFixture
) -> None:
    run = Waiting(context, "fuse", 3 / 3600)
    run.join()
    ends = [str(record.message) for record in caplog.records if "Finished in state Failed" in record.message]
    assert sum("was asked about before, and nobody approved it within" in end for end in ends) > 0, ends
    asked = [record for record in caplog.records if "over the profile's `approval`" in record.message]
    assert len(asked) == 1


def tasks_of(api: PrefectApi, run: str) -> dict[str, str]:
    tasks = api.everything("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    return {task["name"]: task["state_type"] for task in tasks}


@pytest.mark.slow
def test_two_expensive_stages_ask_one_after_the_other(context: RunContext, api: PrefectApi) -> None:
    run = Waiting(context, "fuse")
    asked: list[str] = []
    while len(asked) < 2:
        wait_for(lambda: run.id and run.state(api)["type"] == "PAUSED", 300, "a question")
        message = run.state(api)["message"]
        asked.append(message.split()[0])
        assert "goes on" in said_by(api, context.store, run.id)
        wait_for(lambda: run.state(api).get("message") != message, 60, "the next")  # noqa: B023
    # Which of those that could begin come first is chance.
    assert len(set(asked)) == 2
    assert set(asked) < {"logits-llama", "logits-qwen", "surgeon-llama"}
    context.stop.set()
    run.join()
