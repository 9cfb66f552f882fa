"""What a sick endpoint, a wrong key or a refused parameter cannot do to an evolution: on a real HTTP server."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.store import Store
from tasks.evolve.client import EndpointError
from tests.committed import digest_of
from tests.evolve.reading import counts_of, rows_of

Recipe = Callable[..., dict[str, Any]]
RunStage = Callable[..., Artifact]


def test_transient_faults_leave_no_trace_in_the_data(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe
) -> None:
    recipe, other = autoevol_recipe(), autoevol_recipe()
    calm = run_stage("evolve", recipe, {}, endpoint.settings())
    # Another key, the same requests: the seeds come in the same order under another limit that none of them reaches.
    other["source"]["max_seeds"] = 100
    endpoint.faults.extend(
        [
            endpoint.Reply(status=429, raw='{"error": {"message": "slow down"}}', headers={"retry-after": "0.2"}),
            endpoint.Reply(status=500, raw="Internal Server Error"),
            endpoint.Reply(status=503, raw="<html>overloaded</html>", headers={"content-type": "text/html"}),
            endpoint.Reply(status=408, raw="{}"),
            endpoint.Reply(status=409, raw="{}"),
            endpoint.Reply(raw='{"choices": [{"message": {"content": "half a'),
            endpoint.Reply(raw='{"error": {"message": "upstream failed", "code": 502}}'),
            endpoint.Reply(raw='{"choices": []}'),
            endpoint.Reply(raw="plain text in place of JSON", headers={"content-type": "text/plain"}),
            endpoint.Reply(content="Rate limit exceeded. Please retry.", finish="stop"),
            endpoint.Reply(content="half an answer", finish="error"),
            endpoint.Reply(content="a tool is called", finish="tool_calls"),
            endpoint.Reply(content="half an answer that claims to be whole", cut=True),
            endpoint.Reply(hang_up=True),
            endpoint.Reply(content="too late", delay=2),
        ]
    )
    stormy = run_stage(
        "evolve", other, {}, endpoint.settings(timeout_seconds=1.5, max_retries=20, max_delay_seconds=0.3)
    )
    assert not endpoint.faults
    assert digest_of(stormy) == digest_of(calm)
    manifest = stormy.manifest()
    assert manifest is not None
    assert manifest.metrics["retries"] >= 15


def test_a_retry_is_no_sooner_than_the_endpoint_asks(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe
) -> None:
    endpoint.faults.append(endpoint.Reply(status=429, raw="{}", headers={"retry-after": "0.3"}))
    run_stage("evolve", autoevol_recipe(), {}, endpoint.settings(concurrency=1, first_delay_seconds=0))
    assert endpoint.times[1] - endpoint.times[0] >= 0.3


def test_a_date_to_come_back_at_is_kept_as_well(run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe) -> None:
    in_an_hour = formatdate(time.time() + 3600, usegmt=True)
    endpoint.faults.append(endpoint.Reply(status=503, raw="{}", headers={"retry-after": in_an_hour}))
    with pytest.raises(EndpointError, match=r"asks for a pause of 3[56]\d\d s"):
        run_stage("evolve", autoevol_recipe(), {}, endpoint.settings(concurrency=1))
    unreadable = endpoint.Reply(status=503, raw="{}", headers={"retry-after": "soon"})
    endpoint.faults.append(unreadable)
    run_stage("evolve", autoevol_recipe(), {}, endpoint.settings())


def test_a_pause_that_is_too_long_ends_the_launch(run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe) -> None:
    endpoint.faults.append(endpoint.Reply(status=429, raw="{}", headers={"retry-after": "3600"}))
    with pytest.raises(EndpointError, match="asks for a pause of 3600 s") as caught:
        run_stage("evolve", autoevol_recipe(), {}, endpoint.settings(concurrency=1))
    assert caught.value.retryable
    assert len(endpoint.bodies) == 1


@pytest.mark.parametrize(
    "sick",
    [
        {"content": "502 Bad Gateway"},
        {"raw": '{"choices": [{"message": {"content": "502 Bad Gateway'},
        {"raw": '{"choices": []}'},
    ],
)
def test_an_error_in_place_of_one_answer_costs_that_row_only(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe, store: Store, sick: dict[str, Any]
) -> None:
    endpoint.respond = lambda body: (
        endpoint.Reply(**sick)
        if endpoint.purpose_of(body) == "answer" and "number 2" in endpoint.prompt_of(body)
        else endpoint.scripted(body)
    )
    artifact = run_stage("evolve", autoevol_recipe(method_rounds=0), {}, endpoint.settings(max_retries=2))
    counts = counts_of(artifact)
    assert (counts["answered"], counts["errored"]) == (5, 1)
    assert (
        sum(entry["content"].startswith("The answer to") for row in rows_of(artifact) for entry in row["messages"]) == 5
    )
    for entry in store.list("artifacts"):
        data = store.get(entry.path)
        assert b"Bad Gateway" not in data


@pytest.mark.parametrize(
    ("status", "raw"),
    [
        (400, '{"error": {"code": "content_filter", "message": "The response was filtered"}}'),
        (400, '{"error": {"message": "This model\'s maximum context length is 4096 tokens"}}'),
        (413, "<html>Request Entity Too Large</html>"),
        (422, '{"error": "Input validation error"}'),
    ],
)
def test_a_refused_text_costs_its_row_once_and_for_all(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe, store: Store, status: int, raw: str
) -> None:
    """Five of six seeds, with no failed call allowed: a refusal is an end of its call, in this launch and the next."""

    def refuses(body: dict[str, Any]) -> bool:
        return (
            endpoint.purpose_of(body) == "answer"
            and "number" in endpoint.prompt_of(body)
            and ("number 2" not in endpoint.prompt_of(body))
        )

    def respond(body: dict[str, Any]) -> Any:
        if refuses(body):
            return endpoint.Reply(status=status, raw=raw)
        if endpoint.purpose_of(body) == "answer" and "number 2" in endpoint.prompt_of(body) and sick:
            return endpoint.Reply(status=404, raw="{}", delay=0.5)
        return endpoint.scripted(body)

    endpoint.respond = respond
    recipe, settings = autoevol_recipe(method_rounds=0), endpoint.settings(max_failed_calls=0)
    sick = True
    with pytest.raises(BadInputError, match="status 404"):
        run_stage("evolve", recipe, {}, settings)
    refused = sum(map(refuses, endpoint.bodies))
    assert refused == 5
    sick = False
    artifact = run_stage("evolve", recipe, {}, settings)
    assert sum(map(refuses, endpoint.bodies)) == refused, "no refused call is made again"
    counts = counts_of(artifact)
    assert (counts["answered"], counts["refused"], counts["errored"]) == (1, 5, 0)
    assert counts["served_models"] == ["served-writer"]
    for entry in store.list(artifact.directory):
        assert b"maximum context" not in store.get(entry.path)
        assert b"filtered" not in store.get(entry.path)


def test_a_parameter_that_no_call_may_have_ends_the_launch_at_once(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe, store: Store
) -> None:
    """Of one model of two: the other one's calls say nothing of it, and nothing is recorded as refused."""
    endpoint.respond = lambda body: (
        endpoint.Reply(status=400, raw='{"error": {"message": "top_p must be 1"}}')
        if body["model"] == "critic"
        else endpoint.scripted(body)
    )
    with pytest.raises(
        BadInputError, match=r"refuses whatever critic is asked \(status 400: .*top_p must be 1"
    ) as caught:
        run_stage("evolve", autoevol_recipe(), {}, endpoint.settings())
    assert not caught.value.retryable
    assert sum(body["model"] == "critic" for body in endpoint.bodies) == 2
    assert not [entry for entry in store.list("artifacts") if b"content_filter" in store.get(entry.path)]


def test_faults_by_the_dozen_lose_nothing_and_pollute_nothing(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe, store: Store
) -> None:
    """Every third request fails in one of ten ways, throughout a run with follow-up turns, of which none may show."""
    recipe, other = autoevol_recipe(num_seeds=12, followup_turns=1), autoevol_recipe(num_seeds=12, followup_turns=1)
    calm = run_stage("evolve", recipe, {}, endpoint.settings())
    faults = [
        endpoint.Reply(status=429, raw="FAULT", headers={"retry-after": "0.01"}),
        endpoint.Reply(status=500, raw="FAULT"),
        endpoint.Reply(status=503, raw="<html>FAULT</html>"),
        endpoint.Reply(raw='{"choices": [{"message": {"content": "FAULT'),
        endpoint.Reply(raw='{"choices": [], "model": "FAULT"}'),
        endpoint.Reply(raw='{"choices": [{"finish_reason": null, "message": {"content": "FAULT"}}]}'),
        endpoint.Reply(content="Internal Server Error", finish="stop"),
        endpoint.Reply(content="FAULT", cut=True),
        endpoint.Reply(hang_up=True),
        endpoint.Reply(content="FAULT", delay=2.5),
    ]
    seen = itertools.count()

    def respond(body: dict[str, Any]) -> Any:
        number = next(seen)
        return faults[number // 3 % len(faults)] if number % 3 == 0 else endpoint.scripted(body)

    endpoint.respond = respond
    other["source"]["max_seeds"] = 100
    settings = endpoint.settings(timeout_seconds=2, max_retries=40, max_delay_seconds=0.05)
    stormy = run_stage("evolve", other, {}, settings)
    assert next(seen) > 30 * len(faults) // 10
    assert digest_of(stormy) == digest_of(calm)
    for entry in store.list(stormy.directory):
        data = store.get(entry.path)
        assert b"FAULT" not in data
        assert b"Internal Server Error" not in data


def test_an_endpoint_that_only_sends_error_texts_makes_no_artifact(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe, store: Store
) -> None:
    endpoint.respond = lambda _body: endpoint.Reply("Internal server error. Please retry.")
    with pytest.raises(EndpointError, match=r"answered 3 calls with an error text.*run again"):
        run_stage("evolve", autoevol_recipe(), {}, endpoint.settings(max_retries=1, max_failed_calls=2))
    # What was paid for is counted, without its text.
    written = [entry.path for entry in store.list("artifacts")]
    assert written
    for path in written:
        assert "/unanswered/" in path
        assert b"nternal" not in store.get(path)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_stops_at_once(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe, status: int
) -> None:
    endpoint.respond = lambda _body: endpoint.Reply(status=status, raw='{"error": {"message": "no such model"}}')
    with pytest.raises(BadInputError, match=rf"status {status}.*no such model.*check runtime.endpoint.base_url"):
        run_stage("evolve", autoevol_recipe(), {}, endpoint.settings(concurrency=2))
    assert len(endpoint.bodies) <= 2


def test_the_key_is_in_no_written_byte(
    run_stage: RunStage,
    endpoint: Any,
    autoevol_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    key = "sk-very-secret-0123456789"
    monkeypatch.setenv("EVOLVE_TEST_KEY", key)
    settings = endpoint.settings(api_key_env="EVOLVE_TEST_KEY", max_retries=1, max_failed_calls=0)
    # Endpoints repeat the key in their complaints, as a status, as a body and even as content.
    complaints = [
        (endpoint.Reply(status=401, raw='{"error": {"message": "bad key {authorization}"}}'), BadInputError),
        (endpoint.Reply(status=400, raw='{"error": {"message": "bad key {authorization}"}}'), BadInputError),
        (endpoint.Reply(status=500, raw="{authorization}"), EndpointError),
        (endpoint.Reply(raw='{"who": "{authorization}"}'), EndpointError),
        (endpoint.Reply(f"<evolved_instruction>Guess what {key} opens.</evolved_instruction>"), EndpointError),
    ]
    for reply, kind in complaints:
        endpoint.respond = lambda _body, reply=reply: reply
        with pytest.raises(kind) as caught:
            run_stage("evolve", autoevol_recipe(), {}, settings)
        assert key not in str(caught.value)
        assert key not in repr(caught.value.__cause__)
        assert caught.value.__suppress_context__
    endpoint.respond = endpoint.scripted
    run_stage("evolve", autoevol_recipe(), {}, settings)
    assert endpoint.keys == {f"Bearer {key}"}
    written = capfd.readouterr()
    assert key not in written.out + written.err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]


def test_a_dummy_key_may_stand_in_an_answer(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOLVE_TEST_KEY", "EMPTY")
    endpoint.respond = lambda body: (
        endpoint.Reply("Say EMPTY to the keeper, and wait until the gate has been opened for the boat.")
        if endpoint.purpose_of(body) == "answer"
        else endpoint.scripted(body)
    )
    settings = endpoint.settings(api_key_env="EVOLVE_TEST_KEY", max_retries=0)
    artifact = run_stage("evolve", autoevol_recipe(method_rounds=0), {}, settings)
    counts = counts_of(artifact)
    assert (counts["answered"], counts["errored"]) == (6, 0)
    assert endpoint.keys == {"Bearer EMPTY"}


def test_a_missing_key_is_said_before_any_call(run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe) -> None:
    with pytest.raises(BadInputError, match=r"NO_SUCH_KEY, named in .* is empty"):
        run_stage("evolve", autoevol_recipe(), {}, endpoint.settings(api_key_env="NO_SUCH_KEY"))
    with pytest.raises(BadInputError, match="needs an endpoint"):
        run_stage("evolve", autoevol_recipe(), {})
    assert endpoint.bodies == []
