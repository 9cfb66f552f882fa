"""The stage with a real teacher: alignment, padding, invariance, resume, gates, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.dump_logits.claims import Claim
from tasks.dump_logits.forward import Forward
from tasks.dump_logits.stage import DumpLogitsGates, judge
from tasks.dump_logits.truncate import Truncation
from tasks.logits.reader import LogitReader, LogitRow
from tasks.logits.rows import Row
from tasks.logits.verify import verify
from tasks.modeling.model_files import load_causal_lm
from tasks.worker.job import STOP_FILE, Job, PreemptedError
from tests.committed import digest_of, metrics_of

VOCAB = 251
Rows = dict[str, list[Row]]
Inputs = dict[str, Artifact]
Make = Callable[..., Any]


def reader_of(artifact: Artifact) -> LogitReader:
    manifest = artifact.manifest()
    assert manifest is not None
    return LogitReader(artifact.store, artifact.directory, manifest)


def model_of(artifact: Artifact, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> PreTrainedModel:
    """The teacher, loaded anew and untouched by the stage."""
    manifest = artifact.manifest()
    assert manifest is not None
    entry = manifest.object("config.json")
    assert entry is not None
    file = artifact.store.local_path(artifact.path(entry.path))
    assert file is not None
    return load_causal_lm(file.parent, dtype=dtype, attn_implementation=attention)


@torch.inference_mode()
def plain_logprobs(model: PreTrainedModel, row: Row) -> torch.Tensor:
    """(T − 1, V) in float64: one unpadded row through the whole model, padded vocabulary rows cut off."""
    logits = model(input_ids=torch.from_numpy(row.input_ids.astype(np.int64))[None]).logits[0, :-1, :VOCAB]
    return logits.double().log_softmax(1)


def all_rows(artifact: Artifact, split: str) -> list[LogitRow]:
    rows = reader_of(artifact).rows(split)  # type: ignore[arg-type]
    return [rows[index] for index in range(len(rows))]


def test_every_stored_number_is_that_of_a_plain_forward_pass(
    run_stage: Make, inputs: Inputs, rows: Rows, recipe_of: Make
) -> None:
    artifact = run_stage("dump_logits", recipe_of(), inputs, {"tokens_per_batch": 128, "head_chunk_tokens": 7})
    model = model_of(inputs["teacher"])
    for split, part in rows.items():
        for row, got in zip(part, all_rows(artifact, split), strict=True):
            assert got.row_id == row.row_id
            logprobs_PV = plain_logprobs(model, row)
            gold_P = torch.from_numpy(row.input_ids[1:].astype(np.int64))
            # Position p predicts token p + 1: any shift is off by nats.
            expected_gold = logprobs_PV.gather(1, gold_P[:, None])[:, 0].numpy()
            np.testing.assert_allclose(got.gold_logprob_P, expected_gold, atol=1e-4)
            assert got.topk_ids_PK.max(initial=0) < VOCAB
            kept = torch.from_numpy(got.topk_ids_PK.astype(np.int64))
            np.testing.assert_allclose(got.topk_logprobs_PK, logprobs_PV.gather(1, kept).numpy(), atol=1e-4)
            largest_PK = logprobs_PV.topk(16).values.numpy() if len(kept) else np.empty((0, 16))
            np.testing.assert_allclose(got.topk_logprobs_PK, largest_PK, atol=1e-4)
            rest = logprobs_PV.scatter(1, kept, -torch.inf)
            np.testing.assert_allclose(got.tail_logprob_P, rest.logsumexp(1).numpy(), atol=1e-4)
            # Stored in steps of 1/512 nat.
            np.testing.assert_allclose(got.tempered_lse_PM[:, 0], (logprobs_PV / 2).logsumexp(1).numpy(), atol=1.1e-3)
    manifest = artifact.manifest()
    assert manifest is not None
    assert verify(artifact.store, artifact.directory, manifest) == []
    schema = reader_of(artifact).schema
    assert (schema.vocab_size, schema.width, schema.temperatures) == (VOCAB, 16, (2.0,))
    assert schema.teacher_digest == digest_of(inputs["teacher"])
    assert [entry.name for entry in schema.shards] == ["train-00000", "train-00001", "train-00002", "heldout-00000"]


def test_metrics_are_those_of_the_rows(run_stage: Make, inputs: Inputs, rows: Rows, recipe_of: Make) -> None:
    metrics = metrics_of(run_stage("dump_logits", recipe_of(), inputs))
    model = model_of(inputs["teacher"])
    captured, nll = [], {split: [] for split in rows}
    for split, part in rows.items():
        for row in part:
            logprobs_PV = plain_logprobs(model, row)
            captured += logprobs_PV.exp().sort(descending=True).values[:, :16].sum(1).tolist()
            gold = logprobs_PV.gather(1, torch.from_numpy(row.input_ids[1:].astype(np.int64))[:, None])[:, 0]
            nll[split] += (-gold[torch.from_numpy(row.loss_mask[1:].astype(bool))]).tolist()
    assert metrics["captured_mass"] == pytest.approx(np.mean(captured), abs=1e-5)
    assert metrics["captured_mass_min"] == pytest.approx(min(captured), abs=1e-5)
    assert metrics["captured_mass_p10"] == pytest.approx(np.quantile(captured, 0.1), abs=5e-3)
    assert metrics["tail_mass"] == pytest.approx(1 - np.mean(captured), abs=1e-5)
    for split, values in nll.items():
        assert metrics[f"gold_nll_{split}"] == pytest.approx(np.mean(values), abs=1e-5)
    assert metrics["tokens"] == sum(len(row.input_ids) for part in rows.values() for row in part)
    assert metrics["positions"] == len(captured)
    assert metrics["targets"] == sum(len(values) for values in nll.values())
    assert 0 <= metrics["gold_error"] < 1e-4
    assert metrics["bytes_per_token"] > 16 * 4
    assert metrics["entries_per_position"] == 16
    # Rows of 9, 64 and 33 tokens share no batch at 5 %.
    assert metrics["padding"] <= 0.05


def test_gold_values_of_the_wrong_token_show_in_the_error(
    run_stage: Make, inputs: Inputs, recipe_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    truncate = Truncation.__call__

    def shifted(self: Truncation, hidden_CD: torch.Tensor, gold_C: torch.Tensor, *rest: Any) -> Any:
        return truncate(self, hidden_CD, gold_C.roll(1), *rest)

    monkeypatch.setattr(Truncation, "__call__", shifted)
    metrics = metrics_of(run_stage("dump_logits", recipe_of(), inputs))
    assert metrics["gold_error"] > 1
    assert [result.passed for result in judge(metrics, DumpLogitsGates(min_captured_mass=None))] == [False]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_results_do_not_depend_on_batches_or_chunks(
    dtype: str, run_stage: Make, inputs: Inputs, recipe_of: Make
) -> None:
    tolerance = {"float32": 2e-5, "bfloat16": 0.1}[dtype]
    recipe = recipe_of(teacher={"dtype": dtype}, support={"kind": "top_k", "num_kept": VOCAB}, splits=["train"])
    runtimes = [
        {"tokens_per_batch": 1, "head_chunk_tokens": 512},
        {"tokens_per_batch": 4096, "head_chunk_tokens": 512},
        {"tokens_per_batch": 4096, "head_chunk_tokens": 5},
    ]
    dense = []
    for runtime in runtimes:
        artifact = run_stage("dump_logits", recipe, inputs, runtime)
        found = []
        for row in all_rows(artifact, "train"):
            assert np.isneginf(row.tail_logprob_P).all()
            full_PV = np.empty((len(row.topk_ids_PK), VOCAB))
            np.put_along_axis(full_PV, row.topk_ids_PK, row.topk_logprobs_PK, 1)
            found.append(full_PV)
        dense.append(np.concatenate(found))
        for entry in list(artifact.store.list(artifact.directory)):
            artifact.store.delete(entry.path)
    assert np.abs(dense[1] - dense[0]).max() <= tolerance
    # Chunks change the shape of one matrix product in float32, whatever the teacher's type.
    assert np.abs(dense[2] - dense[1]).max() <= 2e-5


def test_a_bfloat16_teacher_is_normalised_in_float32(
    run_stage: Make, inputs: Inputs, rows: Rows, recipe_of: Make
) -> None:
    artifact = run_stage("dump_logits", recipe_of(teacher={"dtype": "bfloat16"}), inputs, {"tokens_per_batch": 1})
    model = model_of(inputs["teacher"], torch.bfloat16)
    head_VD = model.get_output_embeddings().weight[:VOCAB].double()
    for row, got in zip(rows["train"], all_rows(artifact, "train"), strict=True):
        if len(row.input_ids) < 2:
            continue
        ids = torch.from_numpy(row.input_ids.astype(np.int64))[None]
        with torch.inference_mode():
            hidden_TD = model.base_model(input_ids=ids).last_hidden_state[0, :-1].double()
            logprobs_PV = (hidden_TD @ head_VD.T).log_softmax(1).numpy()
        expected = np.take_along_axis(logprobs_PV, got.topk_ids_PK, 1)
        np.testing.assert_allclose(got.topk_logprobs_PK, expected, atol=2e-5)
        total = np.exp(got.topk_logprobs_PK.astype(np.float64)).sum(1) + np.exp(got.tail_logprob_P.astype(np.float64))
        np.testing.assert_allclose(total, 1, atol=2e-6)
    assert metrics_of(artifact)["gold_error"] < 0.05


def test_a_deleted_shard_alone_is_made_again_with_the_same_bytes(
    run_stage: Make, inputs: Inputs, recipe_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_stage("dump_logits", recipe_of(), inputs)
    digest, metrics, receipts = digest_of(first), metrics_of(first), first.receipts()
    for name in ("manifest.json", "shards/main.json", "shards/train-00001.json"):
        first.store.delete(first.path(name))
    made = []
    commit = Job.commit_shard

    def recorded(job: Job, shard: str, *arguments: Any) -> Any:
        made.append(shard)
        return commit(job, shard, *arguments)

    monkeypatch.setattr(Job, "commit_shard", recorded)
    second = run_stage("dump_logits", recipe_of(), inputs)
    assert made == ["train-00001"]
    assert digest_of(second) == digest
    assert metrics_of(second) == metrics
    assert second.receipts()["train-00001"].write_id != receipts["train-00001"].write_id
    assert second.receipts()["train-00000"] == receipts["train-00000"]


def test_two_runs_have_equal_digests(run_stage: Make, inputs: Inputs, recipe_of: Make) -> None:
    first = run_stage("dump_logits", recipe_of(values="warped"), inputs)
    digest = digest_of(first)
    for entry in list(first.store.list(first.directory)):
        first.store.delete(entry.path)
    assert digest_of(run_stage("dump_logits", recipe_of(values="warped"), inputs)) == digest


def test_a_stop_keeps_finished_shards_and_a_later_launch_goes_on(
    run_stage: Make, inputs: Inputs, recipe_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = Job.commit_shard

    def then_stop(job: Job, *arguments: Any) -> Any:
        (job.scratch / STOP_FILE).touch()
        return commit(job, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Job, "commit_shard", then_stop)
        with pytest.raises(PreemptedError):
            run_stage("dump_logits", recipe_of(), inputs)
    artifact = run_stage("dump_logits", recipe_of(), inputs)
    events = [
        json.loads(line)
        for file in sorted(artifact.store.local_path("x").parents[1].glob("scratch/*/events.jsonl"))  # type: ignore[union-attr]
        for line in file.read_text().splitlines()
    ]
    made = [event["message"] for event in events if event["kind"] == "receipt" and "-0" in event["message"]]
    assert sorted(set(made)) == sorted(made)
    assert len(made) == 4
    last = max((event for event in events if event["kind"] == "progress"), key=lambda event: event["time"])
    assert last["done"] == last["total"] == metrics_of(artifact)["tokens"]
    assert last["values"]["tokens_per_second"] > 0


def test_a_worker_that_is_not_the_launchs_first_leaves_the_end_to_that(
    run_stage: Make, inputs: Inputs, recipe_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    # It finds all shards free and makes them; there is no receipt of `main` to commit.
    with pytest.raises(KeyError, match="main"):
        run_stage("dump_logits", recipe_of(), inputs)
    monkeypatch.setenv("RANK", "0")
    artifact = run_stage("dump_logits", recipe_of(), inputs)
    assert sorted(artifact.receipts()) == sorted(
        ["heldout-00000", "main", "prior", "train-00000", "train-00001", "train-00002"]
    )
    assert list(artifact.store.list(artifact.path("leases"))) == []


def test_a_shard_that_another_took_over_is_left_to_it(
    run_stage: Make, inputs: Inputs, recipe_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease is lost in the midst of the work, once: it is not committed, and made again when it is free."""
    made, lost = [], []
    commit, batch = Job.commit_shard, Forward._batch

    def recorded(job: Job, shard: str, *arguments: Any) -> Any:
        made.append(shard)
        return commit(job, shard, *arguments)

    def losing(forward: Forward, *arguments: Any) -> Any:
        held = [claim for claim in claims if claim.name == "train-00001" and not claim.lost]
        if held and not lost:
            lost.append(held[0])
            held[0]._lease.lost = True
        return batch(forward, *arguments)

    claims: list[Claim] = []
    create = Claim.__init__

    def remembered(claim: Claim, *arguments: Any) -> None:
        create(claim, *arguments)
        claims.append(claim)

    monkeypatch.setattr(Job, "commit_shard", recorded)
    monkeypatch.setattr(Forward, "_batch", losing)
    monkeypatch.setattr(Claim, "__init__", remembered)
    # A lease that is lost is not deleted: it is another's. Here it expires.
    artifact = run_stage("dump_logits", recipe_of(), inputs, {"lease_ttl_seconds": 5})
    assert len(lost) == 1
    assert sorted(made) == ["heldout-00000", "prior", "train-00000", "train-00001", "train-00002"]
    assert len([claim for claim in claims if claim.name == "train-00001"]) == 2
    assert metrics_of(artifact)["rows"] == 11


@pytest.mark.parametrize(
    "support", [{"kind": "adaptive", "min_probability": 0.01}, {"kind": "sampled", "num_draws": 20}]
)
def test_other_supports_hold_the_teachers_probabilities_whatever_the_batches(
    support: dict[str, Any], run_stage: Make, inputs: Inputs, rows: Rows, recipe_of: Make
) -> None:
    recipe = recipe_of(support=support)
    first = run_stage("dump_logits", recipe, inputs, {"tokens_per_batch": 1, "head_chunk_tokens": 9})
    one = all_rows(first, "train")
    for entry in list(first.store.list(first.directory)):
        first.store.delete(entry.path)
    second = run_stage("dump_logits", recipe, inputs, {"tokens_per_batch": 4096})
    two = all_rows(second, "train")
    for before, after in zip(one, two, strict=True):
        np.testing.assert_array_equal(before.topk_ids_PK, after.topk_ids_PK)
        np.testing.assert_array_equal(before.counts_PK, after.counts_PK)
        np.testing.assert_allclose(before.topk_logprobs_PK, after.topk_logprobs_PK, atol=2e-5)
        if support["kind"] == "sampled":
            assert (after.counts_PK.sum(1) == 20).all()
    model = model_of(inputs["teacher"])
    for row, got in zip(rows["train"], two, strict=True):
        logprobs_PV = plain_logprobs(model, row).numpy()
        kept_PK = got.topk_ids_PK >= 0
        expected_PK = np.take_along_axis(logprobs_PV, np.where(kept_PK, got.topk_ids_PK, 0), 1)
        np.testing.assert_allclose(got.topk_logprobs_PK[kept_PK], expected_PK[kept_PK], atol=1e-4)
    assert metrics_of(second)["entries_per_position"] < {"adaptive": 40, "sampled": 20}[support["kind"]]


def tiny(config: type, model: type, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    settings = {
        "vocab_size": 256,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "pad_token_id": 0,
    }
    return model(config(**(settings | changes))).eval()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model", "attention"),
    [
        pytest.param(lambda: tiny(LlamaConfig, LlamaForCausalLM, tie_word_embeddings=True), "sdpa", id="tied"),
        pytest.param(
            lambda: tiny(Gemma2Config, Gemma2ForCausalLM, final_logit_softcapping=3.0, head_dim=8),
            "eager",
            id="softcap",
        ),
        pytest.param(lambda: tiny(CohereConfig, CohereForCausalLM, logit_scale=0.25), "sdpa", id="scale"),
        pytest.param(lambda: tiny(GraniteConfig, GraniteForCausalLM, logits_scaling=4.0), "sdpa", id="divisor"),
    ],
)
def test_tied_heads_softcaps_and_logit_scales_count(
    model: Callable[[], PreTrainedModel],
    attention: str,
    run_stage: Make,
    teacher_of: Make,
    corpus_of: Make,
    rows: Rows,
    recipe_of: Make,
) -> None:
    teacher = teacher_of(model())
    inputs = {"teacher": teacher, "corpus": corpus_of(rows)}
    recipe = recipe_of(splits=["heldout"], teacher={"dtype": "float32", "attention": attention})
    artifact = run_stage("dump_logits", recipe, inputs)
    plain = model_of(teacher, attention=attention)
    for row, got in zip(rows["heldout"], all_rows(artifact, "heldout"), strict=True):
        logprobs_PV = plain_logprobs(plain, row).numpy()
        np.testing.assert_allclose(got.topk_logprobs_PK, np.take_along_axis(logprobs_PV, got.topk_ids_PK, 1), atol=1e-4)
    assert metrics_of(artifact)["gold_error"] < 1e-4


class ScaledLlama(LlamaForCausalLM):
    """An architecture with a formula of its own behind the head."""

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        output = super().forward(*arguments, **keywords)
        output.logits = output.logits * 1.5
        return output


def test_an_unknown_transformation_of_logits_is_refused(
    run_stage: Make, inputs: Inputs, recipe_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> PreTrainedModel:
        return tiny(LlamaConfig, ScaledLlama)

    monkeypatch.setattr("tasks.dump_logits.teacher.load_causal_lm", load)
    with pytest.raises(
        BadInputError, match="ScaledLlama transforms its logits in a way that dump_logits does not know"
    ):
        run_stage("dump_logits", recipe_of(), inputs)


def test_bad_inputs_are_refused_with_a_sentence(
    run_stage: Make, inputs: Inputs, rows: Rows, recipe_of: Make, teacher_of: Make, corpus_of: Make
) -> None:
    def refused(message: str, changes: Mapping[str, Any] | None = None, **other: Artifact) -> None:
        with pytest.raises(BadInputError, match=message):
            run_stage("dump_logits", recipe_of(**(changes or {})), inputs | other)

    refused(
        "recipe.support keeps 252 entries, the teacher's vocabulary has 251",
        {"support": {"kind": "top_k", "num_kept": VOCAB + 1}},
    )
    refused("the corpus was tokenized with", teacher=teacher_of(vocab_size=VOCAB - 1))
    refused(
        f"row {rows['train'][1].row_id} has 64 tokens, the teacher's max_position_embeddings is 63",
        teacher=teacher_of(max_position_embeddings=63),
    )
    refused("its config.json only 250 rows", {"splits": ["heldout"]}, teacher=teacher_of(num_rows=250))
    refused(
        "quantised as nothing, recipe.teacher.quantisation says fp8",
        {"teacher": {"dtype": "bfloat16", "quantisation": "fp8"}},
    )
    refused(
        "cannot load the teacher with attention sdpa in float32",
        teacher=teacher_of(tiny(Gemma2Config, Gemma2ForCausalLM, head_dim=8)),
    )
    refused("no rows in train, heldout", corpus=corpus_of({"train": [], "heldout": []}))


def test_hidden_states_that_are_not_finite_name_the_row(
    run_stage: Make, rows: Rows, recipe_of: Make, teacher_of: Make, corpus_of: Make
) -> None:
    model = tiny(LlamaConfig, LlamaForCausalLM)
    bad = rows["train"][5]
    others = [row for part in rows.values() for row in part if row is not bad]
    token = next(token for token in bad.input_ids[2:-1] if all(token not in row.input_ids for row in others))
    model.get_input_embeddings().weight.data[int(token)] = torch.nan
    with pytest.raises(BadInputError, match=f"the teacher's output is not finite on row {bad.row_id}"):
        run_stage("dump_logits", recipe_of(), {"teacher": teacher_of(model), "corpus": corpus_of(rows)})
