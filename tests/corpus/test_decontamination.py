"""A corpus without items of evaluations: what goes, what is counted, and which keys stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from flows.dag import build
from flows.profiles import load_profile
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.corpus.stage import CorpusConfig, CorpusRecipe, DecontaminatedCorpusRecipe
from tasks.exercises import generate
from tasks.runtime.declare import Step
from tests.benchmarks.leaderboard_mirror import write_gpqa
from tests.golden.keys import constant_content

SETS = [{"type": "exercises", "kinds": ["add", "swap"], "items_per_kind": 6}]
TEXTS = [f"Document {number} speaks of {number * 37} things.\n" * 3 for number in range(30)]


@pytest.fixture(autouse=True)
def _environment(own_environment: None) -> None:
    """As the workers of these tests are this process."""


def test_documents_that_hold_an_item_are_neither_trained_on_nor_held_out(write_corpus, text_files, chat_files) -> None:
    leaked, in_text = generate("swap", "test", 6, 0)[3], generate("add", "test", 6, 0)[2]
    chats = [
        [("user", leaked.prompt), ("assistant", leaked.answer)],
        [("system", leaked.prompt), ("user", "Name a river."), ("assistant", "The Danube.")],
    ]
    texts = [*TEXTS, f"An exercise: {in_text.prompt} And so on."]
    sources = [text_files(texts), chat_files(chats)]
    raw = write_corpus("qwen", sources=sources, max_tokens=512)
    made = write_corpus("qwen", sources=sources, max_tokens=512, decontamination={"evaluations": SETS})
    whole = {row.text for split in ("train", "heldout") for row in raw[split]}
    left = {row.text for split in ("train", "heldout") for row in made[split]}
    assert leaked.answer in {row.text for split in ("train", "heldout") for row in raw[split]}
    assert left < whole
    assert leaked.answer not in left
    assert not any(in_text.prompt in text for text in left)
    assert "The Danube." in left, "many conversations share a system prompt"
    metrics = made["manifest"].metrics
    told = metrics["decontamination"]
    assert metrics["dropped"]["contaminated"] == sum(told["removed"].values()) == 2
    assert told["documents"] == len(texts) + len(chats)
    assert told["removed"] == {"files": 2}
    about = told["evaluations"]["exercises"]
    assert (about["items"], about["documents_removed"], len(about["sha256"])) == (12, 2, 64)
    examples = made["summary"]["decontamination"]["examples"]
    assert sorted(example["item"].split("/")[0] for example in examples) == ["exercise_add", "exercise_swap"]
    assert "decontamination" not in raw["summary"]
    assert "decontamination" not in raw["manifest"].metrics


def test_a_set_that_is_left_out_is_named_with_its_reason(write_corpus, text_files) -> None:
    told = {"evaluations": SETS, "not_decontaminated": {"exercises": "of another split"}}
    made = write_corpus("qwen", sources=[text_files(TEXTS)], decontamination=told)
    summary = made["manifest"].metrics["decontamination"]
    assert summary["not_decontaminated"] == {"exercises": "of another split"}
    assert (summary["evaluations"], summary["removed"]) == ({}, {})


def test_sets_of_the_harness_are_read_from_a_mirror(
    run_stage: Callable[..., Artifact], tokenizers: dict[str, Path], text_files: Any, tmp_path: Path
) -> None:
    from tasks.benchmarks.evaluation_sets import HarnessSet
    from tasks.benchmarks.evaluation_texts import items_of

    mirror = write_gpqa(tmp_path / "mirror", items=4)
    item = next(items_of(HarnessSet(name="leaderboard_gpqa_main"), str(mirror)))
    texts = [*TEXTS, f"A quiz. {item.prompts[0]}"]
    sets = [{"type": "lm_eval", "name": "leaderboard_gpqa_main"}]
    recipe = {"sources": [text_files(texts)], "max_tokens": 512, "template_date": "2024-07-26", "heldout_fraction": 0.2}
    inputs = {"tokenizer": tokenizers["qwen"]}
    compared = {**recipe, "decontamination": {"evaluations": sets}}
    manifest = run_stage("corpus", compared, inputs, {"mirror": str(mirror)}).manifest()
    assert manifest is not None
    told = manifest.metrics["decontamination"]
    assert (told["documents"], told["removed"]) == (len(texts), {"files": 1})
    assert told["evaluations"]["leaderboard_gpqa_main"]["items"] == 4
    with pytest.raises(BadInputError, match=r"does not exist.*corpus\.recipe\.decontamination\.not_decontaminated"):
        run_stage("corpus", {**compared, "seed": 1}, inputs, {"mirror": str(tmp_path / "nowhere")})


def steps_of(profile: str, *sets: str) -> dict[str, Step]:
    with constant_content():
        return {step.label: step for step in build(load_profile(profile, sets))}


def test_both_branches_of_medius_are_compared_with_all_that_it_evaluates() -> None:
    steps = steps_of("medius")
    evaluated = steps["evaluate"].config.recipe.model_dump()["tasks"]
    for label in ("corpus-llama", "corpus-qwen"):
        recipe = steps[label].config.recipe
        assert isinstance(recipe, DecontaminatedCorpusRecipe)
        names = [each.model_dump()["name"] for each in recipe.decontamination.evaluations]
        assert names == [task["name"] for task in evaluated]
    cleaned = steps["clean"].config.recipe.model_dump()
    assert cleaned["evaluations"] == recipe.decontamination.model_dump()["evaluations"]


def test_without_it_a_key_is_what_it_was_and_with_it_the_sets_are_part_of_it() -> None:
    plain: dict[str, Any] = {"sources": [{"kind": "stdlib_docs", "max_bytes": 9}], "max_tokens": 8,
                             "template_date": "2024-07-26"}  # fmt: skip
    assert type(CorpusConfig.model_validate({"recipe": {**plain, "decontamination": None}}).recipe) is CorpusRecipe
    with pytest.raises(ValidationError, match=r"decontamination\.ngram_words"):
        CorpusConfig.model_validate({"recipe": {**plain, "decontamination": {"ngram_words": 1}}})
    on = "branches.qwen.corpus.recipe.decontamination={}"
    more = "assessment.evaluate.recipe.tasks.0.items_per_kind=9"
    assert steps_of("micro", more)["corpus-qwen"].key == steps_of("micro")["corpus-qwen"].key
    assert steps_of("micro", on)["corpus-qwen"].key != steps_of("micro")["corpus-qwen"].key
    assert steps_of("micro", on, more)["corpus-qwen"].key != steps_of("micro", on)["corpus-qwen"].key
    assert steps_of("micro", on)["corpus-llama"].key == steps_of("micro")["corpus-llama"].key
