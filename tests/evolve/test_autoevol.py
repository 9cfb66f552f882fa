"""What an evolution of instructions makes, against a real HTTP server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.evolve import prompts
from tasks.evolve.method import TrialOutcome, failure_rates, method_digest
from tasks.evolve.method_file import MethodFile
from tests.committed import read
from tests.evolve.reading import counts_of, rows_of

Recipe = Callable[..., dict[str, Any]]
RunStage = Callable[..., Artifact]


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
    assert read(first, "method.txt") == b"Step 1. Be harder."
    file = tmp_path / "method.txt"
    file.write_text("Step 1. Be harder.\n")
    digests = set()
    for path in (str(file), first.uri):
        method = MethodFile(path=path).with_identity()
        digests.add(method.content_sha256)
        endpoint.bodies.clear()
        recipe = autoevol_recipe(method_rounds=0, method=method.model_dump(mode="json"), max_seeds=3)
        artifact = run_stage("evolve", recipe, {}, endpoint.settings())
        assert read(artifact, "method.txt") == b"Step 1. Be harder."
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
    assert read(artifact, "method.txt").decode() == endpoint.improved_method
    (entry,) = counts_of(artifact)["method_history"]
    better = method_digest(endpoint.improved_method)
    assert entry["method_before"] == method_digest(prompts.INITIAL_METHOD)
    assert (entry["failure_rate_before"], entry["proposals"], entry["failure_rate_after"]) == (1.0, {better: 0.0}, 0.0)
    assert {row["lineage"]["method"] for row in rows_of(artifact)} == {better}


def test_a_proposal_that_is_no_better_does_not_replace_the_method(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe
) -> None:
    artifact = run_stage("evolve", autoevol_recipe(), {}, endpoint.settings())
    assert read(artifact, "method.txt").decode() == prompts.INITIAL_METHOD


def test_a_judging_model_can_reject_a_method(run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe) -> None:
    def respond(body: dict[str, Any]) -> Any:
        if endpoint.purpose_of(body) == "verdict":
            return endpoint.Reply("<verdict>fail</verdict>")
        return endpoint.scripted(body)

    endpoint.respond = respond
    judge = {"model": "judge", "temperature": 0, "max_tokens": 8}
    (entry,) = counts_of(run_stage("evolve", autoevol_recipe(judge=judge), {}, endpoint.settings()))["method_history"]
    assert entry["failure_rate_before"] == 1.0


@pytest.mark.parametrize(("said", "rate"), [("Pass.", 0.0), ("**PASSED**", 0.0), ("failed", 1.0)])
def test_a_verdict_is_read_without_its_punctuation(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe, said: str, rate: float
) -> None:
    endpoint.respond = lambda body: (
        endpoint.Reply(f"<verdict>{said}</verdict>")
        if endpoint.purpose_of(body) == "verdict"
        else endpoint.scripted(body)
    )
    judge = {"model": "judge", "temperature": 0, "max_tokens": 8}
    (entry,) = counts_of(run_stage("evolve", autoevol_recipe(judge=judge), {}, endpoint.settings()))["method_history"]
    assert (entry["failure_rate_before"], entry["unreadable_verdicts"]) == (rate, 0)


def test_a_judge_that_is_never_readable_ends_the_search_with_a_sentence(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Recipe
) -> None:
    endpoint.respond = lambda body: (
        endpoint.Reply("I would say it depends.") if endpoint.purpose_of(body) == "verdict" else endpoint.scripted(body)
    )
    judge = {"model": "judge", "temperature": 0, "max_tokens": 8}
    with pytest.raises(BadInputError, match="neither pass nor fail between <verdict> tags"):
        run_stage("evolve", autoevol_recipe(judge=judge), {}, endpoint.settings())


def test_a_verdict_that_cannot_be_read_says_nothing_of_a_method() -> None:
    sound, fails, unreadable = TrialOutcome.SOUND, TrialOutcome.FAILS, TrialOutcome.UNREADABLE
    assert failure_rates([[fails, unreadable, sound], [sound, fails, sound]]) == [0.5, 0.0]


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
