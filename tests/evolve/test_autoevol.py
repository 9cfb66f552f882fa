"""The evolution of instructions against a real HTTP server: what it makes, and what a sick endpoint cannot do to it."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.store import Store
from tasks.evolve import prompts
from tasks.evolve.client import EndpointError
from tasks.evolve.method import method_digest
from tasks.evolve.method_file import MethodFile

Recipe = Callable[..., dict[str, Any]]
RunStage = Callable[..., Artifact]


def read(artifact: Artifact, name: str) -> str:
    manifest = artifact.manifest()
    assert manifest is not None
    entry = manifest.object(name)
    assert entry is not None
    return artifact.store.get(artifact.path(entry.path)).decode()


def rows_of(artifact: Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read(artifact, "instructions.jsonl").splitlines()]


def counts_of(artifact: Artifact) -> dict[str, Any]:
    counts: dict[str, Any] = json.loads(read(artifact, "evolve.json"))
    return counts


def digest_of(artifact: Artifact) -> str:
    manifest = artifact.manifest()
    assert manifest is not None
    return manifest.digest


def test_every_seed_becomes_a_row_with_its_lineage(run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe) -> None:
    artifact = run_stage("evolve", autoevol_recipe(), {}, endpoint.settings())
    rows, counts = rows_of(artifact), counts_of(artifact)
    assert len(rows) == len({row["id"] for row in rows}) == 6
    for row in rows:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert row["messages"][0]["content"].count("prove each step") == 2
        assert row["lineage"] == {
            "source": "autoevol",
            "seed_id": row["id"].split("-")[0],
            "seed_origin": {"profile": "seeds.instructions", "row": rows.index(row)},
            "round": 2,
            "turns": 1,
            "method": counts["method"],
            "evolver": "writer",
            "answerer": "writer",
        }
    assert counts["seeds"] == counts["evolved"] == counts["answered"] == 6
    assert counts["evolutions"] == 12
    assert counts["calls"] == sum(endpoint.answered.values()) == len(endpoint.answered)
    assert (counts["prompt_tokens"], counts["completion_tokens"]) == (20 * counts["calls"], 10 * counts["calls"])
    assert counts["served_models"] == ["served-critic", "served-writer"]
    manifest = artifact.manifest()
    assert manifest is not None
    assert manifest.metrics["rows"] == 6
    assert manifest.metrics["rejected_fraction"] == 0
    assert manifest.metrics["generated"] is False


def test_the_answerer_sees_nothing_but_the_instruction(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe
) -> None:
    artifact = run_stage("evolve", autoevol_recipe(method_rounds=0), {}, endpoint.settings())
    asked = [body["messages"] for body in endpoint.bodies if endpoint.purpose_of(body) == "answer"]
    assert sorted(m[0]["content"] for m in asked) == sorted(row["messages"][0]["content"] for row in rows_of(artifact))
    assert all(len(messages) == 1 for messages in asked)


def test_follow_up_turns_make_a_conversation_of_a_row(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe
) -> None:
    artifact = run_stage("evolve", autoevol_recipe(method_rounds=0, followup_turns=2), {}, endpoint.settings())
    rows, counts = rows_of(artifact), counts_of(artifact)
    assert (counts["answered"], counts["turns"]) == (6, 18)
    for row in rows:
        roles, texts = zip(*((message["role"], message["content"]) for message in row["messages"]), strict=True)
        assert roles == ("user", "assistant") * 3
        assert texts[2].startswith("Step 1: what follows")
        assert texts[4].startswith("Step 2: what follows")
        assert row["lineage"]["turns"] == 3
        # Each answer is to the conversation as it stands in the row, and nothing else.
        asked = [body["messages"] for body in endpoint.bodies if endpoint.purpose_of(body) == "answer"]
        assert [row["messages"][:length] in asked for length in (1, 3, 5)] == [True] * 3


def test_a_conversation_ends_at_the_first_turn_that_cannot_be_used(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe
) -> None:
    def respond(body: dict[str, Any]) -> Any:
        told, purpose = endpoint.prompt_of(body), endpoint.purpose_of(body)
        begun = body["messages"][0]["content"]
        if purpose == "next_message" and "number 0" in told:
            return endpoint.Reply("no tags at all")
        if purpose == "next_message" and "number 1" in told:
            question = told.split("[user]\n")[1].split("\n[assistant]")[0]
            return endpoint.Reply(f"<next_message>{question}</next_message>")
        if purpose == "answer" and "number 2" in begun and len(body["messages"]) == 3:
            return endpoint.Reply("The answer is cut", finish="length")
        if purpose == "answer" and "number 3" in begun:
            return endpoint.Reply("I'm sorry, but I can't help with that.")
        return endpoint.scripted(body)

    endpoint.respond = respond
    artifact = run_stage("evolve", autoevol_recipe(method_rounds=0, followup_turns=1), {}, endpoint.settings())
    turns = {
        next(number for number in range(6) if f"number {number}" in row["messages"][0]["content"]): len(row["messages"])
        for row in rows_of(artifact)
    }
    assert turns == {0: 2, 1: 2, 2: 2, 4: 4, 5: 4}
    counts = counts_of(artifact)
    names = ("answered", "turns", "unparsed", "unchanged", "truncated", "refused")
    assert [counts[name] for name in names] == [5, 7, 1, 1, 1, 1]


def test_a_search_goes_on_from_the_method_of_an_earlier_one(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe, tmp_path: Path
) -> None:
    first = run_stage("evolve", autoevol_recipe(method="Step 1. Be harder."), {}, endpoint.settings())
    assert read(first, "method.txt") == "Step 1. Be harder."
    file = tmp_path / "method.txt"
    file.write_text("Step 1. Be harder.\n")
    digests = set()
    for path in (str(file), first.uri):
        method = MethodFile(path=path).with_identity()
        digests.add(method.content_sha256)
        endpoint.bodies.clear()
        recipe = autoevol_recipe(method_rounds=0, method=method.model_dump(mode="json"), max_seeds=3)
        artifact = run_stage("evolve", recipe, {}, endpoint.settings())
        assert read(artifact, "method.txt") == "Step 1. Be harder."
        assert all("Step 1. Be harder." in endpoint.prompt_of(body) for body in endpoint.bodies[:1])
    assert len(digests) == 2, "a line feed is another file"
    file.write_text("Step 1. Be easier.")
    with pytest.raises(BadInputError, match="remove content_sha256 to take the new content"):
        MethodFile(path=str(file), content_sha256=min(digests)).text()


def test_a_method_that_is_not_there_is_named(run_stage: RunStage, tmp_path: Path) -> None:
    for content, complaint in ((b"\xff", "no UTF-8 text"), (b" \n", "is empty")):
        (tmp_path / "method.txt").write_bytes(content)
        with pytest.raises(BadInputError, match=complaint):
            MethodFile(path=str(tmp_path / "method.txt")).text()
    with pytest.raises(BadInputError, match="there is no file"):
        MethodFile(path=str(tmp_path / "none.txt")).with_identity()
    source = {"kind": "exercises", "kinds": ["add"], "difficulties": [1], "count": 2}
    other = run_stage("evolve", {"source": source}, {})
    for uri in (other.uri, f"{other.store.uri}/artifacts/evolve/evolve-0123456789abcdef"):
        with pytest.raises(BadInputError, match="made without a method"):
            MethodFile(path=uri).with_identity()


def test_a_method_that_loses_content_is_replaced(run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe) -> None:
    def respond(body: dict[str, Any]) -> Any:
        if endpoint.purpose_of(body) == "evolved_instruction" and prompts.INITIAL_METHOD in endpoint.prompt_of(body):
            text = f"{endpoint.instruction_of(body)} Use the table below and the figures of the annex, all of them."
            return endpoint.Reply(f"<evolved_instruction>{text}</evolved_instruction>")
        if endpoint.purpose_of(body) == "answer" and "table below" in endpoint.prompt_of(body):
            return endpoint.Reply("Please provide the table.")
        return endpoint.scripted(body)

    endpoint.respond = respond
    artifact = run_stage("evolve", autoevol_recipe(), {}, endpoint.settings())
    assert read(artifact, "method.txt") == endpoint.improved_method
    (entry,) = counts_of(artifact)["method_history"]
    better = method_digest(endpoint.improved_method)
    assert entry["method_before"] == method_digest(prompts.INITIAL_METHOD)
    assert (entry["failure_rate_before"], entry["proposals"], entry["failure_rate_after"]) == (1.0, {better: 0.0}, 0.0)
    assert {row["lineage"]["method"] for row in rows_of(artifact)} == {better}


def test_a_proposal_that_is_no_better_does_not_replace_the_method(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe
) -> None:
    artifact = run_stage("evolve", autoevol_recipe(), {}, endpoint.settings())
    assert read(artifact, "method.txt") == prompts.INITIAL_METHOD


def test_a_judging_model_can_reject_a_method(run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe) -> None:
    def respond(body: dict[str, Any]) -> Any:
        if endpoint.purpose_of(body) == "verdict":
            return endpoint.Reply("<verdict>fail</verdict>")
        return endpoint.scripted(body)

    endpoint.respond = respond
    judge = {"model": "judge", "temperature": 0, "max_tokens": 8}
    (entry,) = counts_of(run_stage("evolve", autoevol_recipe(judge=judge), {}, endpoint.settings()))["method_history"]
    assert entry["failure_rate_before"] == 1.0


def test_an_analysis_that_cannot_be_read_changes_nothing(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe
) -> None:
    endpoint.respond = lambda body: (
        endpoint.Reply("All is well.") if endpoint.purpose_of(body) == "feedback" else endpoint.scripted(body)
    )
    (entry,) = counts_of(run_stage("evolve", autoevol_recipe(), {}, endpoint.settings()))["method_history"]
    assert entry["analysed"] is False
    assert entry["proposals"] == {}


def test_too_few_seeds_stop_the_search_before_any_call(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe
) -> None:
    with pytest.raises(BadInputError, match=r"dev_size \+ batch_size = 4 seeds and finds 3"):
        run_stage("evolve", autoevol_recipe(num_seeds=3), {}, endpoint.settings())
    assert endpoint.bodies == []


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


def test_replies_that_are_no_evolution_are_counted_and_dropped(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe
) -> None:
    def respond(body: dict[str, Any]) -> Any:
        instruction = endpoint.instruction_of(body)
        evolving = endpoint.purpose_of(body) == "evolved_instruction"
        good = endpoint.scripted(body)
        if evolving and "number 0" in instruction:
            return endpoint.Reply(f"<evolved_instruction>{instruction.upper()}</evolved_instruction>")
        if evolving and "number 1" in instruction:
            return endpoint.Reply("I'm sorry, but I cannot help with that.")
        if evolving and "number 2" in instruction:
            return endpoint.Reply(good.content, finish="length")
        if evolving and "number 3" in instruction and "prove each step" in instruction:
            return endpoint.Reply("no tags at all")
        if not evolving and "number 4" in instruction:
            return endpoint.Reply("The answer is cut", finish="length")
        if not evolving and "number 5" in instruction:
            return endpoint.Reply("Could you clarify which canal is meant?")
        return good

    endpoint.respond = respond
    recipe = autoevol_recipe(num_seeds=7, method_rounds=0)
    artifact = run_stage("evolve", recipe, {}, endpoint.settings())
    counts, rows = counts_of(artifact), rows_of(artifact)
    names = ("seeds", "evolved", "evolutions", "unchanged", "refused", "truncated", "unparsed", "failed", "answered")
    assert [counts[name] for name in names] == [7, 4, 7, 1, 1, 2, 1, 1, 2]
    # The third seed was lost in its second round: the form of its first one stands.
    assert sorted((row["lineage"]["round"], "number 3" in row["messages"][0]["content"]) for row in rows) == [
        (1, True),
        (2, False),
    ]
    # Every seed's way is kept, with all of its forms.
    ways = [json.loads(line) for line in read(artifact, "trajectories.jsonl").splitlines()]
    instructions = recipe["source"]["seeds"]["instructions"]
    assert [way["forms"][0] for way in ways] == [instructions[way["seed_origin"]["row"]] for way in ways]
    assert len(ways) == 7
    by_row = {way["row"]: way for way in ways if way["row"] is not None}
    assert set(by_row) == {row["id"] for row in rows}
    assert all(by_row[row["id"]]["forms"][-1] == row["messages"][0]["content"] for row in rows)
    lost = sorted((str(w["evolution_rejected"]), str(w["conversation_rejected"])) for w in ways if w["row"] is None)
    assert len(lost) == 5
    assert all(reason != ("None", "None") for reason in lost)
    manifest = artifact.manifest()
    assert manifest is not None
    assert manifest.metrics["rejected_fraction"] == pytest.approx(5 / 7)


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


def test_never_more_calls_at_once_than_allowed(run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe) -> None:
    def respond(body: dict[str, Any]) -> Any:
        return endpoint.Reply(endpoint.scripted(body).content, delay=0.01)

    endpoint.respond = respond
    run_stage("evolve", autoevol_recipe(num_seeds=12), {}, endpoint.settings(concurrency=3))
    assert endpoint.most_at_once == 3


def test_equal_seeds_are_evolved_once(run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe) -> None:
    recipe = autoevol_recipe(method_rounds=0)
    recipe["source"]["seeds"]["instructions"] *= 2
    artifact = run_stage("evolve", recipe, {}, endpoint.settings())
    counts = counts_of(artifact)
    assert (counts["seeds"], counts["duplicates"], counts["answered"]) == (12, 6, 6)
    assert set(endpoint.answered.values()) == {1}


def test_candidates_are_drawn_with_seeds_of_their_own(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe
) -> None:
    run_stage("evolve", autoevol_recipe(candidates=3), {}, endpoint.settings())
    drawn = [body for body in endpoint.bodies if endpoint.purpose_of(body) == "method"]
    assert len({body["seed"] for body in drawn}) == len(drawn) == 3
    assert len({endpoint.prompt_of(body) for body in drawn}) == 1


def test_an_endpoint_that_knows_no_seed_is_sent_none(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe
) -> None:
    run_stage("evolve", autoevol_recipe(send_seed=False), {}, endpoint.settings())
    assert all("seed" not in body for body in endpoint.bodies)


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
