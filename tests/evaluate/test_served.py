"""Models behind servers: the same numbers as from their weights, or a sentence; never an error as a wrong answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.evaluate.served_probe import ServerError
from tasks.evaluate.stage import STAGE, EvaluateConfig
from tasks.publish.tables import headline
from tasks.runtime.declare import Step
from tests.benchmarks.leaderboard_mirror import write_leaderboard
from tests.committed import objects_of
from tests.evaluate.small_server import NAME, SmallServer
from tests.evaluate.test_leaderboard import CONTEXT, write_model

RunStage = Callable[..., Artifact]
ModelFolder = Callable[..., Path]
ITEMS = 4
CHAT = {"model": NAME, "revision": "seed 2, float32", "chat_template_kwargs": {"date_string": "26 Jul 2024"}}
RECIPE: dict[str, Any] = {
    "tasks": [{"type": "exercises", "kinds": ["sort", "add"], "items_per_kind": ITEMS, "seed": 3}],
    "reference": "base",
    "candidate": "final",
    "max_new_tokens": 4,
    "template_date": "2024-07-26",
    "served": {"there": CHAT},
}


@pytest.fixture
def server(model_folder: ModelFolder) -> Iterator[SmallServer]:
    small = SmallServer(model_folder(2))
    yield small
    small.close()


@pytest.fixture
def inputs(model_folder: ModelFolder, corpus_folder: Path, artifact_of: Callable[..., Artifact]) -> dict[str, Artifact]:
    """`here` has the weights that the server serves."""
    folders = {"base": model_folder(1), "final": model_folder(3, 40), "here": model_folder(2)}
    return {f"model.{name}": artifact_of(path) for name, path in folders.items()} | {
        "corpus": artifact_of(corpus_folder)
    }


def runtime(server: SmallServer, **changes: Any) -> dict[str, Any]:
    return {"servers": {"there": {"base_url": server.url, "concurrency": 2, "max_tries": 2, **changes}}}


def answers(found: dict[str, bytes], model: str) -> list[tuple[Any, ...]]:
    items = [json.loads(line) for line in found[f"samples/{model}.jsonl"].splitlines()]
    return [(item["task"], item["item"], item["document"], item["completion"], item["outcome"]) for item in items]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_model_behind_chat_answers_as_its_weights_do(
    run_stage: RunStage,
    inputs: dict[str, Artifact],
    server: SmallServer,
    concurrency: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SMALL_KEY", "sk-secret-0123")
    settings = runtime(server, concurrency=concurrency, api_key_env="SMALL_KEY")
    artifact = run_stage("evaluate", RECIPE, inputs, settings)
    found = objects_of(artifact)
    assert answers(found, "there") == answers(found, "here")
    assert len(answers(found, "there")) == 2 * ITEMS
    results = json.loads(found["results.json"])
    there = results["models"]["there"]
    assert there["served"] == {"api": "chat", "model": NAME, "revision": "seed 2, float32"}
    assert "bits_per_byte" not in there
    assert "bits_per_byte" in results["models"]["here"]
    assert there["accuracy"] == results["models"]["here"]["accuracy"]
    pair = results["paired"]["final"]["there"]
    assert pair["accuracy"] == results["paired"]["final"]["here"]["accuracy"]
    assert "bits_per_byte" not in pair
    assert "there is small-model at a server, said to be seed 2, float32, asked by chat" in headline(results, {})
    assert server.keys == {"Bearer sk-secret-0123"}
    assert all("stop" not in body or body["stop"] for body in server.bodies), "an empty list is a failure elsewhere"
    for entry in artifact.store.list(artifact.directory):
        data = artifact.store.get(entry.path)
        assert b"sk-secret" not in data
        assert server.url.encode() not in data


def test_log_probabilities_of_a_server_are_those_of_the_weights(
    run_stage: RunStage, tmp_path: Path, artifact_of: Callable[..., Artifact]
) -> None:
    mirror = write_leaderboard(tmp_path / "mirror")
    inputs = {
        f"model.{name}": artifact_of(write_model(tmp_path / name, seed)) for seed, name in enumerate(("base", "final"))
    }
    served = {
        "model": NAME,
        "revision": "seed 1",
        "api": "completions",
        "tokenizer": "final",
        "context_tokens": CONTEXT,
    }
    recipe = {
        "tasks": [{"type": "lm_eval", "name": "leaderboard_musr", "metric": "acc_norm"}],
        "reference": "base",
        "candidate": "final",
        "bits_per_byte": False,
        "served": {"there": served},
    }
    small = SmallServer(tmp_path / "final")
    try:
        found = objects_of(run_stage("evaluate", recipe, inputs, {**runtime(small), "mirror": str(mirror)}))
        assert [each[:3] + each[4:] for each in answers(found, "there")] == [
            each[:3] + each[4:] for each in answers(found, "final")
        ]
        results = json.loads(found["results.json"])
        assert results["models"]["there"]["tokenizer"] == results["models"]["final"]["tokenizer"]

        small.echoes = False
        other = {**recipe, "served": {"there": {**served, "revision": "another"}}}
        with pytest.raises(BadInputError, match=r"needs the log-probabilities of its prompts, and the server of there"):
            run_stage("evaluate", other, inputs, {**runtime(small), "mirror": str(mirror)})
        chat = {**recipe, "served": {"there": CHAT}}
        with pytest.raises(
            BadInputError, match=r"which no chat interface returns; set evaluate.recipe.served.there.api"
        ):
            run_stage("evaluate", chat, inputs, {**runtime(small), "mirror": str(mirror)})
        short = {**recipe, "served": {"there": {**served, "context_tokens": 16}}}
        small.echoes = True
        with pytest.raises(BadInputError, match="does not fit the context of there"):
            run_stage("evaluate", short, inputs, {**runtime(small), "mirror": str(mirror)})
    finally:
        small.close()


def test_completions_of_token_ids_are_those_of_the_weights(
    run_stage: RunStage, inputs: dict[str, Artifact], server: SmallServer
) -> None:
    served = {"model": NAME, "revision": "2", "api": "completions", "tokenizer": "here", "context_tokens": 96}
    found = objects_of(run_stage("evaluate", {**RECIPE, "served": {"there": served}}, inputs, runtime(server)))
    assert answers(found, "there") == answers(found, "here")


def test_transient_faults_are_tried_again_and_lasting_ones_end_the_evaluation(
    run_stage: RunStage, inputs: dict[str, Artifact], server: SmallServer
) -> None:
    no_content = json.dumps({"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": None}}]})
    whole = server.answer

    def after_the_probe(*faults: tuple[int, str]) -> Callable[..., tuple[int, str]]:
        waiting = iter(faults)

        def answer(path: str, body: dict[str, Any]) -> tuple[int, str]:
            probing = body["messages"][0]["content"] == "Say yes."
            return whole(path, body) if probing else next(waiting, None) or whole(path, body)

        return answer

    lasting = [(500, "{}")] * 1000
    server.answer = after_the_probe(*lasting)  # type: ignore[method-assign]
    with pytest.raises(
        ServerError, match=r"the server of there stayed out of order through all tries .*500.*run again"
    ):
        run_stage("evaluate", RECIPE, inputs, runtime(server, concurrency=1))
    for refused in ((400, '{"error": "too long"}'), (404, "{}")):
        server.answer = after_the_probe(*[refused] * 1000)  # type: ignore[method-assign]
        before = len(server.bodies)
        with pytest.raises(BadInputError, match=f"refuses a request with status {refused[0]}"):
            run_stage("evaluate", RECIPE, inputs, runtime(server))
        assert len(server.bodies) - before <= 1 + 2, "what is refused is not asked for again"
    filtered = json.dumps({"choices": [{"index": 0, "finish_reason": "content_filter", "message": {"content": ""}}]})
    server.answer = after_the_probe(*[(200, filtered)] * 1000)  # type: ignore[method-assign]
    with pytest.raises(BadInputError, match="filtered an answer"):
        run_stage("evaluate", RECIPE, inputs, runtime(server))

    for message in ({"content": None}, {"content": "", "reasoning": "Well, 3 plus 4"}):
        reasoned = json.dumps({"choices": [{"index": 0, "finish_reason": "length", "message": message}]})
        server.answer = after_the_probe(*[(200, reasoned)] * 1000)  # type: ignore[method-assign]
        with pytest.raises(BadInputError, match=r"there was cut off while it still reasoned.*max_new_tokens.*parser"):
            run_stage("evaluate", RECIPE, inputs, runtime(server))

    # The first entry is measured, the second is not. A set: a request that the client gave up above may come late.
    measured: set[str] = set()

    def up_to_the_second_entry(path: str, body: dict[str, Any]) -> tuple[int, str]:
        question = body["messages"][-1]["content"]
        if question != "Say yes.":
            if len(measured | {question}) > ITEMS:
                return 500, "{}"
            measured.add(question)
        return whole(path, body)

    server.answer = up_to_the_second_entry  # type: ignore[method-assign]
    with pytest.raises(ServerError, match="stayed out of order"):
        run_stage("evaluate", RECIPE, inputs, runtime(server, concurrency=1))
    assert len(measured) == ITEMS

    # An answer that is none, a body that is no JSON, and a 503, each once; what was measured before is not again.
    server.answer = after_the_probe((200, no_content), (200, '{"choices": ['), (503, "overloaded"))  # type: ignore[method-assign]
    before = len(server.bodies)
    found = objects_of(run_stage("evaluate", RECIPE, inputs, runtime(server, max_tries=5)))
    assert answers(found, "there") == answers(found, "here")
    asked = {body["messages"][-1]["content"] for body in server.bodies[before:]} - {"Say yes."}
    assert len(asked) == ITEMS
    assert not asked & measured


def test_a_server_is_tried_before_the_work(
    run_stage: RunStage, inputs: dict[str, Artifact], server: SmallServer
) -> None:
    unknown = {**RECIPE, "served": {"there": {**CHAT, "model": "other"}}}
    with pytest.raises(BadInputError, match=r"refuses a first short call \(status 404: .*no model other"):
        run_stage("evaluate", unknown, inputs, runtime(server))
    with pytest.raises(BadInputError, match=r"NO_SUCH_KEY, named in evaluate.runtime.servers.there.api_key_env"):
        run_stage("evaluate", RECIPE, inputs, runtime(server, api_key_env="NO_SUCH_KEY"))
    with pytest.raises(ServerError, match="does not answer") as caught:
        run_stage("evaluate", RECIPE, inputs, runtime(server, base_url="http://127.0.0.1:9/v1"))
    assert caught.value.retryable
    clash = {**RECIPE, "served": {"here": CHAT}}
    with pytest.raises(BadInputError, match="so has the run; give the served one another name"):
        run_stage("evaluate", clash, inputs, {"servers": {"here": runtime(server)["servers"]["there"]}})
    artifact = Artifact(inputs["corpus"].store, "artifacts/evaluate")
    assert not [entry for entry in artifact.store.list("artifacts/evaluate") if "/shards/" in entry.path]


def key_of(recipe: dict[str, Any], **blocks: Any) -> str:
    return Step(STAGE, "evaluate", EvaluateConfig.model_validate({"recipe": recipe, **blocks})).key


def test_the_revision_is_part_of_the_key_and_the_address_is_not() -> None:
    def servers(url: str) -> dict[str, Any]:
        return {"servers": {"there": {"base_url": url}}}

    key = key_of(RECIPE, runtime=servers("http://a/v1"))
    assert key == key_of(RECIPE, runtime=servers("http://b/v1"))
    other = {**RECIPE, "served": {"there": {**CHAT, "revision": "b"}}}
    assert key != key_of(other, runtime=servers("http://a/v1"))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"served": {"there": {**CHAT, "api": "completions"}}}, "needs `tokenizer` and `context_tokens`"),
        ({"served": {"there": {**CHAT, "tokenizer": "base"}}}, "are for api: completions"),
        ({"served": {"final": CHAT}}, "'final' is served, and reference"),
        ({"served": {"elsewhere": CHAT}}, "is in one of them only"),
        ({"apply_chat_template": False}, "served.there is asked by chat"),
        ({"served": {"there": {**CHAT, "revision": ""}}}, "revision"),
    ],
)
def test_what_cannot_work_is_refused_when_the_profile_is_read(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        key_of({**RECIPE, **changes}, runtime={"servers": {"there": {"base_url": "http://a/v1"}}})
