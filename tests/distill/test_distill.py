"""The stage distill as a whole, in this process: what it makes, what stops it, and what a resume changes (nothing)."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError, TransientStoreError
from tasks.artifacts.local_store import LocalStore
from tasks.distill.stage import LossRecipe
from tasks.distill.worker import training_rows
from tasks.logits.reader import LogitReader
from tasks.logits.rows import Row
from tasks.training.engine import StepResult, TrainingEngine
from tasks.worker.job import Job, PreemptedError
from tests.committed import metrics_of, objects_of
from tests.training.parts import (
    ROWS,
    VOCAB,
    dense_logits,
    logit_store,
    make_model,
    make_rows,
    model_directory,
    truncate,
)

RECIPE = {
    "loss": {"forward_kl": 0.9, "ce": 0.1},
    "optimizer": {"learning_rate": 0.01},
    "steps": 8,
    "rows_per_step": 6,
    "precision": "float32",
    "log_every_steps": 3,
}
RUNTIME = {"device": "cpu", "micro_batch_tokens": 40}
TEACHER = make_model(seed=1, initializer_range=0.5)
Inputs = dict[str, Artifact]


@pytest.fixture
def inputs(tmp_path: Path, artifact_of: Callable[..., Artifact]) -> Inputs:
    return {
        "student": artifact_of(model_directory(tmp_path / "student", make_model())),
        "logits": logit_store(tmp_path / "logits", artifact_of, TEACHER, make_rows(), temperatures=(2.0,)),
    }


@pytest.fixture(autouse=True)
def _own_sigterm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def heldout_kl(*stores: tuple[PreTrainedModel, Sequence[Row]], tied: bool = True) -> float:
    """The (K+1)-bucket KL of the untrained student to (teacher, held-out rows), from dense float64 logits."""
    student = make_model(tie_word_embeddings=tied)
    total, count = 0.0, 0
    for teacher_model, rows in stores or [(TEACHER, make_rows()["heldout"])]:
        for row in rows:
            teacher = truncate(dense_logits(teacher_model, row), row.input_ids[1:], ())
            student_PV = torch.log_softmax(torch.from_numpy(dense_logits(student, row)), 1)
            for position in np.flatnonzero(row.loss_mask[1:]):
                kept = torch.from_numpy(teacher.topk_ids_PK[position]).long()
                rest = torch.ones(VOCAB, dtype=torch.bool)
                rest[kept] = False
                q = torch.cat((student_PV[position, kept], student_PV[position, rest].logsumexp(0)[None]))
                logp = torch.tensor([*teacher.topk_logprobs_PK[position], teacher.tail_logprob_P[position]])
                total += float((logp.exp() * (logp - q)).sum())
                count += 1
    return total / count


@pytest.mark.parametrize(("tied", "zero"), [(True, 1), (False, 3)])
def test_learns_and_exports(
    tmp_path: Path,
    inputs: Inputs,
    artifact_of: Callable[..., Artifact],
    run_stage: Callable[..., Artifact],
    tied: bool,
    zero: int,
) -> None:
    """Untied, a model has padding rows in two matrices."""
    student = make_model(tie_word_embeddings=tied)
    inputs["student"] = artifact_of(model_directory(tmp_path / f"tied-{tied}", student))
    recipe = {**RECIPE, "optimizer": {"learning_rate": 0.01, "weight_decay": 0.5}}
    runtime = {**RUNTIME, "deepspeed_config": f"configs/deepspeed/zero{zero}.json"}
    artifact = run_stage("distill", recipe, inputs, runtime)
    found = metrics_of(artifact)
    assert found["heldout_kl_start"] == pytest.approx(heldout_kl(tied=tied), rel=1e-5)
    assert found["heldout_kl"] < found["heldout_kl_start"]
    assert (found["steps"], found["world_size"]) == (8, 1)
    assert found["tokens"] > found["target_tokens"] > 0
    assert {"heldout_ce", "heldout_ce_start", "train_loss", "tokens_per_second", "seconds_train"} <= found.keys()

    made = objects_of(artifact)
    assert not [name for name in made if name.endswith((".bin", ".pt", ".pkl"))]
    lines = [json.loads(line) for line in made["training_log.jsonl"].splitlines()]
    assert [line["step"] for line in lines] == [0, 3, 6, 8]
    assert lines[1].keys() == {"step", "loss", "forward_kl", "ce", "grad_norm", "lr"}
    assert lines[1]["loss"] == pytest.approx(0.9 * lines[1]["forward_kl"] + 0.1 * lines[1]["ce"], rel=1e-6)
    assert lines[0] == {"step": 0, "heldout_kl": found["heldout_kl_start"], "heldout_ce": found["heldout_ce_start"]}
    assert lines[-1]["heldout_kl"] == found["heldout_kl"]
    manifest = artifact.manifest()
    assert manifest is not None
    directory = artifact.fetch(manifest, tmp_path / "made")
    model = AutoModelForCausalLM.from_pretrained(directory)
    before = student.state_dict()
    ends = {"model.embed_tokens.weight", "lm_head.weight"}
    for name, weight in model.state_dict().items():
        assert weight.shape == before[name].shape
        assert not torch.equal(weight[:VOCAB], before[name][:VOCAB]), name
        if name in ends:
            assert len(weight) == ROWS
            assert torch.equal(weight[VOCAB:], before[name][VOCAB:]), (
                f"the padding rows of {name} are the student's own"
            )
    assert model.config.tie_word_embeddings == tied
    # Loaded again it is what was judged.
    rows = make_rows()["heldout"]
    assert found["heldout_ce"] == pytest.approx(cross_entropy(model, rows), rel=1e-5)
    assert AutoTokenizer.from_pretrained(directory)("w1 w5").input_ids == [1, 5]
    assert not list(artifact.store.list(artifact.path("checkpoints")))


def cross_entropy(model: PreTrainedModel, rows: Sequence[Row]) -> float:
    """A target, from dense float64 logits."""
    found = []
    for row in rows:
        logprobs_PV = torch.log_softmax(torch.from_numpy(dense_logits(model, row)), 1)
        positions = np.flatnonzero(row.loss_mask[1:])
        found += [-float(logprobs_PV[position, int(row.input_ids[position + 1])]) for position in positions]
    return sum(found) / len(found)


def stop_after(monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    """Has the next launch be asked to stop after so many steps of its own."""
    step, taken = TrainingEngine.step, []

    def counted(*given: Any, **options: Any) -> StepResult:
        taken.append(1)
        return step(*given, **options)

    monkeypatch.setattr(TrainingEngine, "step", counted)
    monkeypatch.setattr(Job, "stop_requested", property(lambda _: len(taken) == last))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_resumed_run_ends_with_the_same_bytes(
    inputs: Inputs, run_stage: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    recipe = {**RECIPE, "steps": 30, "precision": precision}
    runtime = {**RUNTIME, "checkpoint_every_steps": 2}
    undisturbed = objects_of(run_stage("distill", recipe, inputs, RUNTIME))
    # The same training under another key, so that the second does not find the first.
    recipe["log_every_steps"] = 4
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(PreemptedError):
            run_stage("distill", recipe, inputs, runtime)
    resumed = run_stage("distill", recipe, inputs, runtime)
    assert objects_of(resumed)["model.safetensors"] == undisturbed["model.safetensors"]
    lines = [json.loads(line) for line in objects_of(resumed)["training_log.jsonl"].splitlines()]
    assert [line["step"] for line in lines] == [0, 4, 8, 12, 16, 20, 24, 28, 30]
    assert metrics_of(resumed)["heldout_kl_start"] > metrics_of(resumed)["heldout_kl"]
    assert not list(resumed.store.list(resumed.path("checkpoints")))


@pytest.mark.parametrize(("zero", "last"), [(1, 3), (3, 4), (1, 5)], ids=["within", "at its end", "after"])
def test_a_run_that_is_resumed_about_its_embedding_phase_ends_with_the_same_bytes(
    inputs: Inputs, run_stage: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch, zero: int, last: int
) -> None:
    """Four of eight steps on the embedding alone, with its warm-up of four steps and the others' after it."""
    recipe = {**RECIPE, "embedding_steps": 4, "log_every_steps": 1}
    recipe["optimizer"] = {"learning_rate": 0.01, "warmup_fraction": 0.5, "schedule": "constant"}
    runtime = {**RUNTIME, "deepspeed_config": f"configs/deepspeed/zero{zero}.json"}
    with monkeypatch.context() as patch:
        stop_after(patch, last)
        with pytest.raises(PreemptedError):
            run_stage("distill", recipe, inputs, runtime)
    resumed = run_stage("distill", recipe, inputs, runtime)
    bytes_of_resumed = objects_of(resumed)
    shutil.rmtree(Path(resumed.store.uri.removeprefix("file://")) / resumed.directory)
    assert objects_of(run_stage("distill", recipe, inputs, runtime)) == bytes_of_resumed

    lines = [json.loads(line) for line in bytes_of_resumed["training_log.jsonl"].splitlines()][1:]
    assert [line["lr"] for line in lines] == pytest.approx([0.0025, 0.005, 0.0075, 0.01] * 2)
    whole = run_stage("distill", {**recipe, "embedding_steps": 0}, inputs, runtime)
    first = json.loads(objects_of(whole)["training_log.jsonl"].splitlines()[1])
    assert first["loss"] == pytest.approx(lines[0]["loss"], rel=1e-6)
    assert first["grad_norm"] > 1.01 * lines[0]["grad_norm"], "the norm is that of what learns"


def test_a_training_that_only_lacks_its_end_is_not_trained_again(
    inputs: Inputs, run_stage: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store refuses the finished model; the next launch judges and exports what the last step left."""
    upload, refused = LocalStore.upload, []

    def refuse(store: LocalStore, source: Path, path: str) -> None:
        if source.name == "model.safetensors":
            refused.append(path)
            raise TransientStoreError("503")
        upload(store, source, path)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "upload", refuse)
        with pytest.raises(TransientStoreError, match="503"):
            run_stage("distill", RECIPE, inputs, RUNTIME)
    assert refused
    with monkeypatch.context() as patch:
        patch.setattr(TrainingEngine, "step", None)
        resumed = run_stage("distill", RECIPE, inputs, RUNTIME)
    expected, found = objects_of(resumed), metrics_of(resumed)
    assert not list(resumed.store.list(resumed.path("checkpoints")))
    shutil.rmtree(Path(resumed.store.uri.removeprefix("file://")) / resumed.directory)
    undisturbed = run_stage("distill", RECIPE, inputs, RUNTIME)
    assert objects_of(undisturbed) == expected
    for name in ("heldout_kl_start", "heldout_kl", "train_loss", "steps", "tokens", "target_tokens"):
        assert found[name] == metrics_of(undisturbed)[name]


def test_twin_and_temperature(inputs: Inputs, run_stage: Callable[..., Artifact]) -> None:
    """The twin learns nothing from the teacher but is measured against it; T must be one that the dump took."""
    start = heldout_kl()
    twin = metrics_of(run_stage("distill", {**RECIPE, "loss": {"forward_kl": 0, "ce": 1}}, inputs, RUNTIME))
    assert twin["heldout_kl_start"] == pytest.approx(start, rel=1e-5)
    assert twin["heldout_kl"] > 0
    warm = metrics_of(run_stage("distill", {**RECIPE, "loss": {"forward_kl": 1, "temperature": 2}}, inputs, RUNTIME))
    assert warm["heldout_kl_start"] == pytest.approx(start, rel=1e-5)
    assert warm["heldout_kl"] < start
    assert warm["heldout_kl"] < twin["heldout_kl"]
    with pytest.raises(BadInputError, match=r"\[1, 2.0\] only"):
        run_stage("distill", {**RECIPE, "loss": {"forward_kl": 1, "temperature": 3}}, inputs, RUNTIME)


def test_a_student_that_is_the_teacher_has_nothing_to_learn(
    tmp_path: Path, artifact_of: Callable[..., Artifact], run_stage: Callable[..., Artifact]
) -> None:
    """What is left of the KL is the rounding of a float16 store; a rate near 0 keeps it."""
    inputs = {
        "student": artifact_of(model_directory(tmp_path / "student", TEACHER)),
        "logits": logit_store(tmp_path / "logits", artifact_of, TEACHER, make_rows(), values="float16"),
    }
    recipe = {**RECIPE, "loss": {"forward_kl": 1}, "optimizer": {"learning_rate": 1e-9}}
    found = metrics_of(run_stage("distill", recipe, inputs, RUNTIME))
    assert -1e-6 < found["heldout_kl_start"] <= 1e-4
    assert found["heldout_kl"] <= 1e-4
    assert abs(found["train_loss"]) <= 1e-4


def test_a_resumed_run_may_batch_otherwise(
    inputs: Inputs, run_stage: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packing and accumulation are no part of a checkpoint: the last bits change, the result does not."""
    recipe = {**RECIPE, "steps": 30}
    undisturbed = metrics_of(run_stage("distill", recipe, inputs, RUNTIME))
    recipe["log_every_steps"] = 4
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(PreemptedError):
            run_stage("distill", recipe, inputs, {**RUNTIME, "checkpoint_every_steps": 2})
    resumed = metrics_of(
        run_stage("distill", recipe, inputs, {**RUNTIME, "micro_batch_tokens": 100, "pack_tokens": 50})
    )
    for name in ("heldout_kl_start", "heldout_kl", "heldout_ce"):
        assert resumed[name] == pytest.approx(undisturbed[name], rel=1e-4)
    assert [resumed[name] for name in ("steps", "tokens", "target_tokens")] == [
        undisturbed[name] for name in ("steps", "tokens", "target_tokens")
    ]


def test_another_vocabulary_is_refused(
    tmp_path: Path, inputs: Inputs, artifact_of: Callable[..., Artifact], run_stage: Callable[..., Artifact]
) -> None:
    other = artifact_of(model_directory(tmp_path / "other", make_model(), vocab_size=VOCAB + 1))
    with pytest.raises(BadInputError, match="tokenizer"):
        run_stage("distill", RECIPE, {**inputs, "student": other}, RUNTIME)


def test_several_stores_are_mixed_by_weight(
    tmp_path: Path, inputs: Inputs, artifact_of: Callable[..., Artifact], run_stage: Callable[..., Artifact]
) -> None:
    """Two teachers on other text: the rows come 3 to 1, and the held-out splits are judged as one."""
    other = make_model(seed=2, initializer_range=0.5)
    first, second = make_rows({"train": [5] * 7, "heldout": [7, 15]}), make_rows({"train": [9] * 4, "heldout": [11]})
    stores = {
        "logits.prose": logit_store(tmp_path / "first", artifact_of, TEACHER, first, temperatures=(2.0,)),
        "logits.sums": logit_store(tmp_path / "second", artifact_of, other, second),
    }
    given = {"student": inputs["student"], **stores}
    recipe = {**RECIPE, "rows_per_step": 8, "mixture": {"prose": 3, "sums": 1}}
    found = metrics_of(run_stage("distill", recipe, given, RUNTIME))
    assert found["tokens"] == 8 * (6 * 5 + 2 * 9)
    start = heldout_kl((TEACHER, first["heldout"]), (other, second["heldout"]))
    assert found["heldout_kl_start"] == pytest.approx(start, rel=1e-5)
    assert found["heldout_kl"] < start
    one = metrics_of(run_stage("distill", {**recipe, "max_heldout_rows": 1}, given, RUNTIME))
    start = heldout_kl((TEACHER, first["heldout"][:1]), (other, second["heldout"]))
    assert one["heldout_kl_start"] == pytest.approx(start, rel=1e-5), "one row of each store"

    for change, what in (
        ({"mixture": None}, "mixture is missing, but the stores are prose, sums"),
        ({"mixture": {"prose": 1, "maths": 1}}, "weighs maths, prose, but the stores are prose, sums"),
        ({"loss": {"forward_kl": 1, "temperature": 2}}, r"\[1\] only"),
    ):
        with pytest.raises(BadInputError, match=what):
            run_stage("distill", {**recipe, **change}, given, RUNTIME)
    with pytest.raises(BadInputError, match="there is one store; leave it out"):
        run_stage("distill", recipe, inputs, RUNTIME)
    foreign = artifact_of(model_directory(tmp_path / "foreign", make_model(), vocab_size=VOCAB + 1))
    with pytest.raises(BadInputError, match="tokenizer"):
        run_stage("distill", recipe, {**given, "student": foreign}, RUNTIME)


def test_one_of_several_stores_may_have_no_heldout_rows(
    tmp_path: Path, inputs: Inputs, artifact_of: Callable[..., Artifact], run_stage: Callable[..., Artifact]
) -> None:
    """Then the others' are judged; without any, and without rows to train on, the split is named."""
    other = make_model(seed=2, initializer_range=0.5)

    def stores(first: dict[str, list[int]], second: dict[str, list[int]]) -> Inputs:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return {
            "student": inputs["student"],
            "logits.prose": logit_store(folder / "prose", artifact_of, TEACHER, make_rows(first)),
            "logits.sums": logit_store(folder / "sums", artifact_of, other, make_rows(second)),
        }

    recipe = {**RECIPE, "steps": 2, "mixture": {"prose": 1, "sums": 1}}
    prose, sums = {"train": [5] * 7, "heldout": [7, 15]}, {"train": [9] * 4, "heldout": []}
    found = metrics_of(run_stage("distill", recipe, stores(prose, sums), RUNTIME))
    assert found["heldout_kl_start"] == pytest.approx(heldout_kl((TEACHER, make_rows(prose)["heldout"])), rel=1e-5)
    with pytest.raises(BadInputError, match="the held-out split has no rows"):
        run_stage("distill", recipe, stores({**prose, "heldout": []}, sums), RUNTIME)
    with pytest.raises(BadInputError, match=r"the training split of sums has no rows.*leave that store out"):
        run_stage("distill", recipe, stores(prose, {"train": [], "heldout": [9]}), RUNTIME)


@pytest.mark.parametrize("loss", [{"reverse_kl": 1.0}, {"jsd": 0.5}, {"temperature": 2.0}, {"entropy_exponent": -0.5}])
def test_draws_teach_the_forward_kl_alone(
    tmp_path: Path, inputs: Inputs, artifact_of: Callable[..., Artifact], loss: dict[str, float]
) -> None:
    file = tmp_path / "logits" / "logits.json"
    schema = json.loads(file.read_text())
    file.write_text(json.dumps({**schema, "support": {"kind": "sampled", "num_draws": 6}, "temperatures": []}))
    drawn = artifact_of(tmp_path / "logits")
    manifest = drawn.manifest()
    assert manifest is not None
    reader = LogitReader(drawn.store, drawn.directory, manifest)
    assert len(training_rows(reader, LossRecipe())) == len(make_rows()["train"])
    with pytest.raises(BadInputError, match=f"loss.{next(iter(loss))} is .* draws from the teacher"):
        training_rows(reader, LossRecipe(**loss))
