"""Rows of an earlier training between the instructions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.dag import build
from flows.profiles import load_profile
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.sft.stage import ReplayingSftRecipe, SftConfig, SftRecipe, recipe_of
from tasks.training.loader import StepLoader
from tasks.training.order import StepOrder
from tasks.training.packing import Packing
from tasks.training.rows import CorpusRows, MixedRows
from tests.committed import read
from tests.golden.keys import constant_content
from tests.training.parts import VOCAB, corpus_directory, logit_store, make_model, make_rows, model_directory

RECIPE = {
    "optimizer": {"learning_rate": 0.01},
    "steps": 6,
    "rows_per_step": 6,
    "precision": "float32",
    "log_every_steps": 2,
    "replay": {"weight": 0.5, "forward_kl": 0.5},
}
RUNTIME = {"device": "cpu", "micro_batch_tokens": 40}


@pytest.fixture
def inputs(tmp_path: Path, artifact_of: Callable[..., Artifact]) -> dict[str, Artifact]:
    rows = make_rows()
    return {
        "model": artifact_of(model_directory(tmp_path / "model", make_model())),
        "corpus": artifact_of(corpus_directory(tmp_path / "corpus", {**rows, "heldout": rows["train"][:3]})),
        "replay": logit_store(tmp_path / "logits", artifact_of, make_model(seed=1), rows),
    }


def log_of(artifact: Artifact) -> list[dict[str, float]]:
    return [json.loads(line) for line in read(artifact, "training_log.jsonl").splitlines()]


def test_replayed_logits_add_their_kl_and_instructions_their_labels(
    inputs: dict[str, Artifact], run_stage: Callable[..., Artifact]
) -> None:
    done = run_stage("sft", RECIPE, inputs, RUNTIME)
    steps = [line for line in log_of(done) if "loss" in line]
    assert steps
    for line in steps:
        assert line["forward_kl"] > 0
        assert line["loss"] == pytest.approx(0.5 * line["forward_kl"] + line["ce"], rel=1e-5)
        assert 0 < line["taught"] < 1
    manifest = done.manifest()
    assert manifest is not None
    assert not [name for name in manifest.metrics if "kl" in name], "it is judged on the instructions alone"
    # Without its part of the loss the teacher says nothing: the same as the corpus that it read.
    unweighed = {**RECIPE, "replay": {"weight": 0.5, "forward_kl": 0}}
    labels = log_of(run_stage("sft", unweighed, inputs, RUNTIME))
    corpus = log_of(run_stage("sft", RECIPE, {**inputs, "replay": inputs["corpus"]}, RUNTIME))
    losses = [[line["loss"] for line in log if "loss" in line] for log in (labels, corpus)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert not any("forward_kl" in line or "taught" in line for line in corpus)


@pytest.mark.parametrize("replayed", [6, 60])
def test_an_epoch_is_of_the_instructions_however_much_could_be_replayed(
    tmp_path: Path, run_stage: Callable[..., Artifact], replayed: int
) -> None:
    rows = make_rows()["train"]
    instructions = {"train": rows[:6], "heldout": rows[:2]}
    inputs = {
        "model": model_directory(tmp_path / "model", make_model()),
        "corpus": corpus_directory(tmp_path / "corpus", instructions),
        "replay": corpus_directory(tmp_path / "replayed", {"train": (rows * 60)[:replayed], "heldout": rows[:2]}),
    }
    recipe = {**RECIPE, "steps": None, "epochs": 2, "rows_per_step": 4, "replay": {"weight": 0.25}}
    manifest = run_stage("sft", recipe, inputs, RUNTIME).manifest()
    assert manifest is not None
    assert manifest.metrics["steps"] == 4, "two epochs of 6 instructions, and 4 rows replayed"


def test_a_forward_pass_has_rows_of_one_kind(inputs: dict[str, Artifact]) -> None:
    from tasks.logits.reader import LogitReader

    store, manifest = inputs["replay"], inputs["replay"].manifest()
    assert manifest is not None
    taught = LogitReader(store.store, store.directory, manifest).rows("train")
    sources = {"instructions": CorpusRows(make_rows()["train"]), "replay": taught}
    with pytest.raises(BadInputError, match="these sources cannot be mixed"):
        MixedRows(sources)
    mixed = MixedRows(sources, some_untaught=True)
    order = StepOrder(mixed.sizes, 8, 0, {"instructions": 0.75, "replay": 0.25})
    loader = StepLoader(mixed, order, 3, Packing(40), 0, 1)
    try:
        for step in range(3):
            batches = loader.load(step).batches
            widths = [batch.targets.topk_ids_NK.shape[1] for batch in batches]
            assert 0 in widths
            assert max(widths) > 0
            rows = {kind: sum(len(b.row_ids) for b, w in zip(batches, widths, strict=True) if (w > 0) is kind)
                    for kind in (False, True)}  # fmt: skip
            assert rows == {False: 6, True: 2}, "three of four rows are instructions"
            with_teacher = sum(len(b.positions_N) for b, w in zip(batches, widths, strict=True) if w)
            assert loader.load(step).num_taught == with_teacher
    finally:
        loader.close()


def test_logits_of_another_vocabulary_are_refused(
    tmp_path: Path, inputs: dict[str, Artifact], run_stage: Callable[..., Artifact]
) -> None:
    other = model_directory(tmp_path / "other", make_model(), vocab_size=VOCAB + 1)
    with pytest.raises(BadInputError, match="tokenizer"):
        run_stage("sft", RECIPE, {**inputs, "model": other}, RUNTIME)


def test_without_replay_a_recipe_has_the_key_that_it_had() -> None:
    plain = {name: value for name, value in RECIPE.items() if name != "replay"}
    assert type(recipe_of(plain)) is SftRecipe
    config = SftConfig.model_validate({"recipe": RECIPE})
    assert isinstance(config.recipe, ReplayingSftRecipe)
    assert config.model_dump(mode="json")["recipe"]["replay"] == RECIPE["replay"], "a run's record has it too"
    with pytest.raises(ValueError, match=r"replay\.weight: Input should be less than 1"):
        SftConfig.model_validate({"recipe": {**RECIPE, "replay": {"weight": 1.5}}})


REPLAY = "fine_tuning.sft.recipe.replay={weight: 0.2}"


def test_a_profile_names_the_branch_that_is_replayed() -> None:
    with constant_content():
        for rows, label in (("logits", "logits-qwen"), ("corpus", "corpus-qwen")):
            named = f"fine_tuning.replay={{branch: qwen, rows: {rows}}}"
            steps = {step.label: step for step in build(load_profile("micro", [named, REPLAY]))}
            assert steps["sft"].inputs["replay"] is steps[label]
        for sets, message in (
            ([REPLAY], "go together; give both or neither"),
            (["fine_tuning.replay={branch: qwen}"], "go together; give both or neither"),
            (["fine_tuning.replay={branch: llama}", REPLAY], "vocabulary, which the fusion does not have.*: qwen"),
            (["fine_tuning.replay={branch: x}", REPLAY], "'x', which is no branch"),
        ):
            with pytest.raises(BadInputError, match=message):
                load_profile("micro", sets)


@pytest.mark.parametrize(
    ("profile", "split", "refused"),
    [
        ("micro", "heldout_fraction=0.11", True),
        ("micro", "seed=1", True),
        ("micro", "heldout_fraction=0.05", False),
        ("medius", "heldout_fraction=0.02", True),
        ("medius", "heldout_fraction=0.01", False),
    ],
)
def test_what_the_fine_tuning_holds_out_is_not_replayed(profile: str, split: str, refused: bool) -> None:
    sets = ["fine_tuning.replay={branch: qwen}", REPLAY, f"fine_tuning.corpus.recipe.{split}"]
    with constant_content():
        if refused:
            with pytest.raises(BadInputError, match=r"another split than it \(.*take the branch's seed and at most"):
                load_profile(profile, sets)
        else:
            load_profile(profile, sets)
