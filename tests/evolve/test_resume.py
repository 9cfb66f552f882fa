"""A run that ends early, in any way, and goes on later: what was paid for is never paid for again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError, CorruptArtifactError
from tasks.artifacts.fingerprint import artifact_key
from tasks.artifacts.store import Store
from tasks.evolve.client import EndpointError, RecordedEndpoint
from tasks.evolve.evolution import seeds_of
from tasks.evolve.stage import AutoEvolSource
from tasks.worker.job import EXIT_PREEMPTED
from tasks.worker.spec import WorkerSpec
from tests.committed import digest_of, read

Recipe = Callable[..., dict[str, Any]]
RunStage = Callable[..., Artifact]


def recorded_calls(store: Store) -> set[str]:
    return {entry.path for entry in store.list("artifacts") if "/calls/" in entry.path}


def launch(recipe: dict[str, Any], runtime: dict[str, Any], store: Store, tmp_path: Path) -> subprocess.Popen[bytes]:
    """The worker as the runtime starts it, under the key that run_stage gives the same recipe."""
    key = artifact_key("evolve", 1, recipe, {})
    spec = WorkerSpec(
        stage="evolve",
        label="evolve",
        key=key,
        attempt="0badcafe",
        store=store.uri,
        directory=f"artifacts/evolve/evolve-{key[:16]}",
        scratch=str(tmp_path / "scratch" / "0badcafe"),
        input_cache=str(tmp_path / "inputs"),
        recipe=recipe,
        runtime=runtime,
        inputs={},
    )
    path = tmp_path / "spec.json"
    path.write_text(spec.model_dump_json())
    return subprocess.Popen([sys.executable, "-m", "tasks.evolve.worker", "--spec", str(path)], stderr=subprocess.PIPE)


def wait_for_calls(store: Store, number: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while len(recorded_calls(store)) < number:
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def slowly(endpoint: Any, seconds: float) -> None:
    endpoint.respond = lambda body: endpoint.Reply(endpoint.scripted(body).content, delay=seconds)


def test_a_server_that_goes_away_costs_no_finished_call(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe, store: Store
) -> None:
    recipe = autoevol_recipe(num_seeds=10)
    endpoint.stop_after = 17
    with pytest.raises(EndpointError, match=r"did not answer a call in 2 tries.*finished calls are kept") as caught:
        run_stage("evolve", recipe, {}, endpoint.settings(max_retries=1, concurrency=4))
    assert caught.value.retryable
    assert len(recorded_calls(store)) == 17
    endpoint.stop()
    with pytest.raises(EndpointError, match="connection failed"):
        run_stage("evolve", recipe, {}, {"endpoint": {"base_url": "http://127.0.0.1:9/v1", "max_retries": 0}})
    endpoint.restart()
    resumed = run_stage("evolve", recipe, {}, endpoint.settings())
    assert set(endpoint.answered.values()) == {1}
    manifest = resumed.manifest()
    assert manifest is not None
    assert manifest.metrics["calls_of_earlier_launches"] == 17
    assert manifest.metrics["calls"] == sum(endpoint.answered.values()) == len(recorded_calls(store))

    undisturbed = autoevol_recipe(num_seeds=10, max_seeds=100)
    assert digest_of(run_stage("evolve", undisturbed, {}, endpoint.settings())) == digest_of(resumed)


def test_a_call_that_ends_the_launch_takes_none_in_flight_with_it(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_asked, ending = threading.Event(), threading.Event()
    stop = RecordedEndpoint.stop

    def stop_and_tell(self: RecordedEndpoint) -> None:
        stop(self)
        ending.set()

    def respond(body: dict[str, Any]) -> Any:
        if len(endpoint.bodies) == 4:
            all_asked.set()
        if "number 3" in endpoint.prompt_of(body):
            return endpoint.Reply(status=404, raw="{}", after=all_asked)
        return endpoint.Reply(endpoint.scripted(body).content, after=ending)

    monkeypatch.setattr(RecordedEndpoint, "stop", stop_and_tell)
    endpoint.respond = respond
    recipe = autoevol_recipe(num_seeds=4, method_rounds=0)
    with pytest.raises(BadInputError, match="status 404"):
        run_stage("evolve", recipe, {}, endpoint.settings(concurrency=4))
    assert len(recorded_calls(store)) == 3
    endpoint.respond = endpoint.scripted
    run_stage("evolve", recipe, {}, endpoint.settings())
    assert set(endpoint.answered.values()) == {1}


def test_a_killed_worker_repeats_only_calls_in_flight(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe, store: Store, tmp_path: Path
) -> None:
    recipe = autoevol_recipe(num_seeds=12)
    slowly(endpoint, 0.03)
    process = launch(recipe, endpoint.settings(concurrency=3), store, tmp_path)
    wait_for_calls(store, 10, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    endpoint.restart()  # the server ends the calls in flight, whose answers nobody reads
    recorded, answered = len(recorded_calls(store)), sum(endpoint.answered.values())
    assert answered - recorded <= 3
    endpoint.respond = endpoint.scripted
    artifact = run_stage("evolve", recipe, {}, endpoint.settings())
    repeated = sum(times - 1 for times in endpoint.answered.values())
    assert repeated == answered - recorded
    manifest = artifact.manifest()
    assert manifest is not None
    assert manifest.metrics["rows"] == 12


def test_a_worker_asked_to_stop_records_what_is_in_flight(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe, store: Store, tmp_path: Path
) -> None:
    recipe = autoevol_recipe(num_seeds=30)
    slowly(endpoint, 0.1)
    process = launch(recipe, endpoint.settings(concurrency=3), store, tmp_path)
    wait_for_calls(store, 5, process)
    process.terminate()
    assert process.wait(timeout=20) == EXIT_PREEMPTED
    assert len(recorded_calls(store)) == sum(endpoint.answered.values())
    events = [json.loads(line) for line in (tmp_path / "scratch/0badcafe/events.jsonl").read_text().splitlines()]
    assert any(event["kind"] == "progress" and event["unit"] == "calls" for event in events)
    endpoint.respond = endpoint.scripted
    run_stage("evolve", recipe, {}, endpoint.settings())
    assert set(endpoint.answered.values()) == {1}


def test_a_spent_budget_stops_the_run_and_a_larger_one_goes_on(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe
) -> None:
    recipe = autoevol_recipe()
    limited = endpoint.settings(token_budget=300, concurrency=2)
    with pytest.raises(BadInputError, match=r"token budget of evolve is spent .* raise runtime.endpoint.token_budget"):
        run_stage("evolve", recipe, {}, limited)
    # 30 tokens a call: ten calls reach the budget, and one more may have been in flight.
    first = sum(endpoint.answered.values())
    assert 10 <= first <= 11
    with pytest.raises(BadInputError, match="token budget of evolve is spent"):
        run_stage("evolve", recipe, {}, limited)
    assert sum(endpoint.answered.values()) == first
    run_stage("evolve", recipe, {}, endpoint.settings(token_budget=100_000))
    assert set(endpoint.answered.values()) == {1}


def test_a_spent_cost_budget_stops_the_run_and_a_larger_one_goes_on(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe
) -> None:
    recipe = autoevol_recipe()
    # 20 prompt and 10 completion tokens a call: USD 0.0005 by the writer, 0.001 by the critic. The present method's
    # trial and the batch are eight calls of the writer, the analysis is the critic's first.
    prices = {"writer": {"prompt": 10, "completion": 30}, "critic": {"prompt": 25, "completion": 50}}
    limited = endpoint.settings(prices=prices, cost_budget=0.0045, concurrency=1)
    with pytest.raises(BadInputError, match=r"cost budget of evolve is spent \(USD 0.0050 of 0.0045 in 9 calls, all"):
        run_stage("evolve", recipe, {}, limited)
    assert sum(endpoint.answered.values()) == 9
    artifact = run_stage("evolve", recipe, {}, endpoint.settings(prices=prices, cost_budget=1))
    assert set(endpoint.answered.values()) == {1}
    manifest = artifact.manifest()
    assert manifest is not None
    by_model = Counter(body["model"] for body in endpoint.bodies)
    assert manifest.metrics["cost_usd"] == pytest.approx(0.0005 * by_model["writer"] + 0.001 * by_model["critic"])


@pytest.mark.parametrize(
    "sick",
    [
        {"content": "502 Bad Gateway"},
        {"raw": '{"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": 10}}'},
    ],
)
def test_what_is_paid_for_no_answer_counts_too(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe, sick: dict[str, str]
) -> None:
    recipe = autoevol_recipe(method_rounds=0)
    endpoint.respond = lambda _body: endpoint.Reply(**sick)
    limited = endpoint.settings(token_budget=90, concurrency=1, max_retries=10)
    spent = r"spent \(90 of 90 tokens in 0 calls, all kept, and 3 replies that were no answer\)"
    with pytest.raises(BadInputError, match=spent):
        run_stage("evolve", recipe, {}, limited)
    assert len(endpoint.bodies) == 3
    endpoint.respond = endpoint.scripted
    with pytest.raises(BadInputError, match=spent):
        run_stage("evolve", recipe, {}, limited)
    assert len(endpoint.bodies) == 3, "the next launch knows of them"
    prices = {"writer": {"prompt": 10, "completion": 30}, "critic": {"prompt": 25, "completion": 50}}
    manifest = run_stage("evolve", recipe, {}, endpoint.settings(prices=prices)).manifest()
    assert manifest is not None
    assert manifest.metrics["cost_usd"] == pytest.approx(0.0005 * (3 + manifest.metrics["calls"]))


def test_a_method_that_was_chosen_stays_when_an_error_has_gone(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe
) -> None:
    """One of two development seeds is lost to an error, and by the other one the new method is better. On both seeds
    the two would be equal, and the old method would stay."""
    recipe = autoevol_recipe()
    texts = recipe["source"]["seeds"]["instructions"]
    order = seeds_of((text, {}) for text in texts)
    random.Random(AutoEvolSource.model_validate(recipe["source"]).seed).shuffle(order)
    first, second, last = order[0].text, order[1].text, order[-1].text
    unusable = endpoint.Reply("no tags at all")

    def scripted(body: dict[str, Any], *, sick: bool) -> Any:
        prompt, purpose = endpoint.prompt_of(body), endpoint.purpose_of(body)
        improved = endpoint.improved_method in prompt
        if purpose == "evolved_instruction" and (second if improved else first) in prompt:
            return unusable
        if sick and purpose == "answer" and second in prompt:
            return endpoint.Reply("502 Bad Gateway")
        if sick and purpose == "evolved_instruction" and improved and last in prompt:
            return endpoint.Reply(hang_up=True)
        return endpoint.scripted(body)

    endpoint.respond = lambda body: scripted(body, sick=True)
    with pytest.raises(EndpointError, match="did not answer a call"):
        run_stage("evolve", recipe, {}, endpoint.settings(max_retries=1))
    endpoint.respond = lambda body: scripted(body, sick=False)
    before = len(endpoint.bodies)
    artifact = run_stage("evolve", recipe, {}, endpoint.settings())
    (entry,) = json.loads(read(artifact, "evolve.json"))["method_history"]
    assert (entry["failure_rate_before"], entry["failure_rate_after"]) == (1.0, 0.0)
    assert read(artifact, "method.txt").decode() == endpoint.improved_method
    assert {endpoint.purpose_of(body) for body in endpoint.bodies[before:]} <= {"evolved_instruction", "answer"}


def test_a_search_without_one_answer_prefers_no_method(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe
) -> None:
    endpoint.respond = lambda body: (
        endpoint.Reply("502 Bad Gateway") if endpoint.purpose_of(body) == "answer" else endpoint.scripted(body)
    )
    with pytest.raises(EndpointError, match=r"unanswered on each of the 2 seeds.*run again") as caught:
        run_stage("evolve", autoevol_recipe(), {}, endpoint.settings(max_retries=0))
    assert caught.value.retryable
    endpoint.respond = endpoint.scripted
    run_stage("evolve", autoevol_recipe(), {}, endpoint.settings())
    assert set(endpoint.answered.values()) <= {1, 2}


def test_a_budget_needs_an_endpoint_that_counts(run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe) -> None:
    choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": "x"}}
    endpoint.respond = lambda _body: endpoint.Reply(raw=json.dumps({"choices": [choice]}))
    with pytest.raises(BadInputError, match="does not say how many tokens"):
        run_stage("evolve", autoevol_recipe(), {}, endpoint.settings(token_budget=1000, concurrency=1))
    with pytest.raises(BadInputError, match="does not say how many tokens"):
        run_stage("evolve", autoevol_recipe(), {}, endpoint.settings(cost_budget=1, concurrency=1))


def test_a_damaged_record_is_named(run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe, store: Store) -> None:
    recipe = autoevol_recipe()
    endpoint.stop_after = 5
    with pytest.raises(EndpointError):
        run_stage("evolve", recipe, {}, endpoint.settings(max_retries=0))
    path = min(recorded_calls(store))
    store.put(path, b'{"text": "half')
    endpoint.restart()
    with pytest.raises(CorruptArtifactError, match=r"recorded call .* delete this object"):
        run_stage("evolve", recipe, {}, endpoint.settings())
    store.delete(path)
    run_stage("evolve", recipe, {}, endpoint.settings())
    assert sorted(endpoint.answered.values())[-2:] == [1, 2]
