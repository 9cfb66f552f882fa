"""A teacher behind a server: its store is that of one in this process, and what a server cannot give is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.dump_logits.answers import parse, positions
from tasks.dump_logits.stage import DumpLogitsConfig, DumpLogitsRecipe
from tasks.dump_logits.teacher_server import TeacherServerError
from tasks.logits.rows import Row
from tasks.logits.schema import TopKSupport
from tasks.logits.verify import verify
from tasks.worker.job import STOP_FILE, Job, PreemptedError
from tests.committed import digest_of, metrics_of
from tests.dump_logits.conftest import VOCAB, make_model, make_tokenizer
from tests.dump_logits.test_dump import all_rows, reader_of
from tests.dump_logits.vllm_server import HANG_UP, NO_JSON, VllmServer

Make = Callable[..., Any]
Rows = dict[str, list[Row]]
SERVED = {"kind": "served", "dtype": "float32", "engine": "vllm-0.11.0"}
ROUNDING = 2e-5
"""Nats, between float32 log-probabilities of one forward pass and another's, sent as text."""


@pytest.fixture
def server() -> Iterator[VllmServer]:
    # No rows beyond the tokenizer's: both ways then have one vocabulary.
    with VllmServer(make_model(VOCAB), make_tokenizer()) as running:
        yield running


@pytest.fixture
def inputs(rows: Rows, teacher_of: Make, corpus_of: Make) -> dict[str, Artifact]:
    return {"teacher": teacher_of(make_model(VOCAB)), "corpus": corpus_of(rows)}


@pytest.fixture
def served_of(run_stage: Make, recipe_of: Make, server: VllmServer, inputs: dict[str, Artifact]) -> Make:
    """served_of(recipe changes, **server settings) dumps what the server says."""

    def make(changes: dict[str, Any] | None = None, **settings: Any) -> Artifact:
        recipe = recipe_of(**({"teacher": SERVED, "temperatures": []} | (changes or {})))
        where = {"base_url": server.base_url, "concurrency": 3, "max_retries": 3} | settings
        return run_stage("dump_logits", recipe, inputs, {"server": where})

    return make


SUPPORTS: dict[str, dict[str, Any]] = {
    "top_k": {"kind": "top_k", "num_kept": 16},
    "adaptive": {"kind": "adaptive", "min_probability": 0.02, "max_kept": 16},
    "mass": {"kind": "adaptive", "min_probability": None, "min_mass": 0.8, "min_kept": 2, "max_kept": 16},
}


@pytest.mark.parametrize(
    ("support", "protocol"),
    [("top_k", "prompt_logprobs"), ("adaptive", "prompt_logprobs"), ("mass", "prompt_logprobs"), ("top_k", "echo")],
)
def test_the_store_is_that_of_the_same_teacher_in_this_process(
    support: str, protocol: str, run_stage: Make, recipe_of: Make, inputs: dict[str, Artifact], rows: Rows,
    served_of: Make, server: VllmServer,
) -> None:  # fmt: skip
    artifact = served_of({"support": SUPPORTS[support]}, protocol=protocol)
    here = run_stage("dump_logits", recipe_of(support=SUPPORTS[support], temperatures=[]), inputs)
    for split in rows:
        for got, expected in zip(all_rows(artifact, split), all_rows(here, split), strict=True):
            assert got.row_id == expected.row_id
            np.testing.assert_array_equal(got.input_ids, expected.input_ids)
            np.testing.assert_array_equal(got.loss_mask, expected.loss_mask)
            np.testing.assert_array_equal(got.topk_ids_PK, expected.topk_ids_PK)
            for name in ("topk_logprobs_PK", "gold_logprob_P", "tail_logprob_P"):
                np.testing.assert_allclose(getattr(got, name), getattr(expected, name), atol=ROUNDING, err_msg=name)
    manifest = artifact.manifest()
    assert manifest is not None
    assert verify(artifact.store, artifact.directory, manifest) == []
    ours, theirs = reader_of(artifact).schema, reader_of(here).schema
    assert ours.model_dump(exclude={"teacher"}) == theirs.model_dump(exclude={"teacher"})
    assert (ours.teacher.dtype, ours.teacher.attention) == ("float32", "served by vllm-0.11.0")
    assert ours.teacher_digest == digest_of(inputs["teacher"])
    metrics = metrics_of(artifact)
    assert metrics["gold_error"] < ROUNDING
    assert metrics["server_repeat_max"] < ROUNDING
    assert metrics["server_greedy_max"] < ROUNDING
    assert metrics["server_tokenizer_known"] == 1
    assert server.most_at_once <= 3


def test_ids_beyond_the_tokenizer_are_left_out_and_their_mass_with_them() -> None:
    said = parse(
        {"choices": [{"prompt_logprobs": [None, {"7": {"logprob": np.log(0.5)}, "250": {"logprob": np.log(0.3)},
         "251": {"logprob": np.log(0.005)}, "9": {"logprob": np.log(0.1)}}]}]},
        "prompt_logprobs",
        np.array([3, 9], np.int32),
    )  # fmt: skip
    found = positions(said, TopKSupport(num_kept=2), VOCAB)
    assert found.topk_ids_PK.tolist() == [[7, 250]]
    np.testing.assert_allclose(np.exp(found.topk_logprobs_PK), [[0.5 / 0.995, 0.3 / 0.995]], rtol=1e-6)
    np.testing.assert_allclose(np.exp(found.tail_logprob_P), [1 - 0.8 / 0.995], rtol=1e-5)
    np.testing.assert_allclose(np.exp(found.gold_logprob_P), [0.1 / 0.995], rtol=1e-6)


def test_a_token_of_no_probability_and_a_tail_below_the_rounding() -> None:
    entries = {"7": {"logprob": -1e-8}, "9": {"logprob": -9999.0}, "11": {"logprob": -25.0}}
    said = parse({"choices": [{"prompt_logprobs": [None, entries]}]}, "prompt_logprobs", np.array([3, 9], np.int32))
    found = positions(said, TopKSupport(num_kept=4), VOCAB)
    assert found.topk_ids_PK.tolist() == [[7, 11, -1, -1]]
    assert np.isneginf(found.gold_logprob_P[0])
    assert np.exp(found.topk_logprobs_PK.astype(np.float64)).sum() <= 1 + 1e-7


def test_faults_of_the_server_cost_tries_and_no_rows(served_of: Make, server: VllmServer, rows: Rows) -> None:
    plain = digest_of(served_of())
    # The check asks six times; what follows hits documents.
    server.at[len(server.prompts) + 8] = lambda: server.faults.extend([503, 429, HANG_UP, 500])
    again = served_of({"prior_tokens": 65535})
    assert server.num_faults == 4
    assert digest_of(again) == plain


def test_a_launch_that_gives_up_keeps_its_finished_shards(served_of: Make, server: VllmServer, rows: Rows) -> None:
    # 6 of the check, 10 of the prior, then about 5 a shard: two of four are made.
    server.at[27] = lambda: server.faults.extend([503] * 1000)
    with pytest.raises(TeacherServerError, match=r"did not recover in all tries \(status 503: injected\); finished sh"):
        served_of(max_retries=1)
    server.faults.clear()
    before = len(server.prompts)
    artifact = served_of(max_retries=1)
    total = sum(len(row.input_ids) > 1 for part in rows.values() for row in part)
    # Neither the prior nor the shards with a receipt were asked for again: 6 of the check, and less than all rows.
    assert len(server.prompts) - before < 6 + total
    assert sum(len(all_rows(artifact, split)) for split in rows) == sum(map(len, rows.values()))


def test_an_answer_that_is_no_json_names_what_was_asked(served_of: Make, server: VllmServer) -> None:
    server.at[10] = lambda: server.faults.append(NO_JSON)
    with pytest.raises(TeacherServerError, match=r"the answer to row [0-9a-f]{64} is no JSON object: b'<html>busy"):
        served_of()


def test_a_request_to_stop_is_heard_while_answers_are_awaited(
    served_of: Make, server: VllmServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job] = []
    make = Job.__init__

    def remember(job: Job, *arguments: Any) -> None:
        make(job, *arguments)
        jobs.append(job)

    monkeypatch.setattr(Job, "__init__", remember)
    server.at[9] = lambda: (jobs[-1].scratch / STOP_FILE).touch()
    with pytest.raises(PreemptedError):
        served_of()
    assert metrics_of(served_of())["rows"] == 11


def halved(logits_TV: Any) -> Any:
    return logits_TV / 2


def shifted(logits_TV: Any) -> Any:
    return logits_TV.roll(1, 0)


@pytest.mark.parametrize(
    ("change", "recipe", "message"),
    [
        (lambda server: setattr(server, "max_logprobs", 12), {}, r"keeps 16 entries, .* with --max-logprobs 16"),
        (lambda server: setattr(server, "change_prompt", halved), {}, "shifted, tempered or goes through logit proc"),
        (lambda server: setattr(server, "change_prompt", shifted), {}, "shifted, tempered or goes through logit proc"),
        (lambda server: setattr(server, "max_model_len", 60), {}, "has 64 tokens, and the teacher server takes 59"),
        (lambda server: setattr(server, "tokenizer", make_tokenizer(20)), {}, "makes other ids of a text"),
        (lambda server: setattr(server, "key", "secret"), {}, r"refuses \(status 401: no Bearer none\); corr"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_before_any_work(
    change: Callable[[VllmServer], None], recipe: dict[str, Any], message: str, served_of: Make, server: VllmServer
) -> None:
    change(server)
    with pytest.raises(BadInputError, match=message):
        served_of(recipe)
    # The probe and four of its beginnings.
    assert len(server.prompts) <= 6


def test_text_in_the_place_of_ids_is_refused(served_of: Make, server: VllmServer) -> None:
    server.tells_ids = False
    with pytest.raises(BadInputError, match="names tokens by their text, such as 'w"):
        served_of(protocol="echo")


def test_a_tokenizer_that_is_not_told_is_recorded_as_unknown(served_of: Make, server: VllmServer) -> None:
    server.tells_tokenizer = False
    assert metrics_of(served_of())["server_tokenizer_known"] == 0


def test_another_model_is_named(served_of: Make) -> None:
    with pytest.raises(BadInputError, match=r"serves teacher, not other; correct runtime.server.model"):
        served_of(model="other")


def test_a_server_that_is_down_is_told_at_once(served_of: Make, server: VllmServer) -> None:
    with pytest.raises(TeacherServerError, match=r"did not answer in 3 tries .* or correct runtime.server"):
        served_of(base_url="http://127.0.0.1:9/v1")


def test_the_key_is_sent_and_never_told(served_of: Make, server: VllmServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = "s3cr3t"
    monkeypatch.setenv("TEACHER_KEY", "s3cr3t")
    assert metrics_of(served_of(api_key_env="TEACHER_KEY"))["rows"] == 11
    monkeypatch.setenv("TEACHER_KEY", "0ther")
    server.key = "changed"
    with pytest.raises(BadInputError, match=r"status 401: no Bearer \[key\]"):
        served_of({"rows_per_shard": 4}, api_key_env="TEACHER_KEY")
    monkeypatch.delenv("TEACHER_KEY")
    with pytest.raises(BadInputError, match=r"TEACHER_KEY, named in runtime.server.api_key_env, is empty"):
        served_of({"rows_per_shard": 5}, api_key_env="TEACHER_KEY")


def test_the_profile_refuses_what_no_server_can_give() -> None:
    recipe = {"teacher": SERVED}
    for changes, message in (
        ({"temperatures": [2]}, r"no normaliser at temperatures \(2.0,\)"),
        ({"support": {"kind": "sampled"}}, "no draws with their log-probabilities; set support to top_k"),
    ):
        with pytest.raises(ValidationError, match=message):
            DumpLogitsRecipe.model_validate(recipe | changes)
    where = {"server": {"base_url": "http://localhost:8000/v1"}}
    for block, message in (
        ({"recipe": recipe}, "recipe.teacher is served, and runtime.server says nowhere where"),
        ({"recipe": {"teacher": {"dtype": "float32"}}, "runtime": where}, "is not of kind served; make them agree"),
        ({"recipe": recipe, "runtime": {"server": {"base_url": "http://me:secret@host/v1"}}}, "hold no user, password"),
        (
            {"recipe": recipe, "runtime": where | {"launcher": "torchrun", "num_processes": 2, "tensor_parallel": 2}},
            "leave runtime.tensor_parallel at 1",
        ),
    ):
        with pytest.raises(ValidationError, match=message):
            DumpLogitsConfig.model_validate(block)
    assert DumpLogitsConfig.model_validate({"recipe": recipe, "runtime": where}).runtime.server is not None
