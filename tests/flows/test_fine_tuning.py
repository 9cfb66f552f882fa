"""How a profile chooses between the fusion and the fine-tuned model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.conversation_sets import conversation_sets
from flows.costs import CostOptions, cost_of
from flows.dag import build
from flows.profiles import load_profile
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.store import open_store
from tasks.choose.stage import ChooseRecipe
from tasks.corpus.stage import CorpusRecipe
from tasks.evolve.stage import EvolveRecipe
from tasks.publish.lineage import Made, planned
from tasks.publish.sources import sources
from tasks.runtime.declare import Step
from tests.golden.keys import constant_content


@pytest.fixture(autouse=True, scope="module")
def _content() -> Iterator[None]:
    with constant_content():
        yield


WORSE = {"heldout_ce_start": 2.0, "heldout_ce": 2.1}


def steps_of(profile: str, *sets: str, smoke: bool = False) -> dict[str, Step]:
    return {step.label: step for step in build(load_profile(profile, sets, smoke=smoke))}


@pytest.mark.parametrize("profile", ["micro", "tiny", "smollm2", "medius"])
def test_what_is_published_is_what_was_chosen_on_texts_of_its_own(profile: str) -> None:
    for smoke in (False, True):
        steps = steps_of(profile, smoke=smoke)
        choose, evaluate = steps["choose"], steps["evaluate"]
        assert {role: step.label for role, step in choose.inputs.items()} == {
            "model.fused": "fuse",
            "model.tuned": "sft",
            "corpus": evaluate.inputs["corpus"].label,
            "instructions": "corpus-sft",
        }
        assert steps["publish"].inputs["model"] is choose is evaluate.inputs["model.final"]
        assert evaluate.inputs["model.fused"] is steps["fuse"]
        assert evaluate.inputs["model.tuned"] is steps["sft"]
        recipe = choose.config.recipe
        assert isinstance(recipe, ChooseRecipe)
        assert recipe.skip_documents == evaluate.config.recipe.model_dump()["max_documents"]


@pytest.mark.parametrize("profile", ["micro", "tiny", "smollm2", "medius"])
def test_no_candidate_learnt_a_conversation_that_is_chosen_on(profile: str) -> None:
    loaded = load_profile(profile)
    held_out = loaded.fine_tuning.corpus.recipe
    for branch in loaded.branches.values():
        read = branch.corpus.recipe
        assert read.seed == held_out.seed
        assert read.heldout_fraction >= held_out.heldout_fraction


DATASET = "fine_tuning.evolve.recipe.source={kind: dataset, rows: {origin: file, path: own.jsonl}}"


@pytest.mark.parametrize(
    ("profile", "sets", "refused"),
    [
        ("micro", ["seed=1"], r"of exercises/add that .* and branches.llama.corpus.recipe reads .* 0 and 0.1\)"),
        ("micro", ["heldout_fraction=0.11"], r"take its seed and at most its fraction"),
        ("micro", ["heldout_fraction=0.05"], None),
        ("micro", [DATASET, "seed=1"], None),
        ("medius", ["heldout_fraction=0.02"], r"of hub/arcee-ai/EvolKit-75K that"),
        ("medius", ["heldout_fraction=0.02", "fine_tuning.choose=null"], None),
    ],
)
def test_a_choice_on_what_a_branch_may_have_learnt_is_refused(
    profile: str, sets: list[str], refused: str | None
) -> None:
    changes = [each if each.startswith("fine_tuning.") else f"fine_tuning.corpus.recipe.{each}" for each in sets]
    if refused is None:
        load_profile(profile, changes)
        return
    with pytest.raises(BadInputError, match=refused):
        load_profile(profile, changes)


def test_one_file_is_one_set_however_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)
    rows = {"origin": "file", "path": "own.jsonl"}
    instructions = EvolveRecipe.model_validate({"source": {"kind": "dataset", "rows": rows}})
    files = {"kind": "files", "paths": [f"{tmp_path}/*.jsonl"], "format": "jsonl"}
    found = [
        conversation_sets(
            CorpusRecipe.model_validate({"sources": [source], "max_tokens": 8, "template_date": "2024-07-26"}),
            instructions,
        )
        for source in ({"kind": "instructions"}, {**files, "messages_field": "m"}, {**files, "text_field": "t"})
    ]
    assert found == [{f"{tmp_path}/own.jsonl"}, {f"{tmp_path}/own.jsonl"}, set()]


def test_without_a_choice_the_fine_tuned_model_goes_on() -> None:
    steps = steps_of("micro", "fine_tuning.choose=null")
    assert "choose" not in steps
    assert steps["publish"].inputs["model"] is steps["sft"]
    assert "model.tuned" not in steps["evaluate"].inputs


@pytest.mark.parametrize(
    ("sets", "gate"),
    [
        ([], None),
        (["fine_tuning.sft.gates.heldout_ce_must_not_rise=0.9"], 0.9),
        (["fine_tuning.sft.gates.heldout_ce_must_not_rise=1.0"], 1.0),
        (["fine_tuning.choose=null"], 1.0),
    ],
)
def test_a_fine_tuning_that_made_the_model_worse_reaches_the_choice(sets: list[str], gate: float | None) -> None:
    step = steps_of("tiny", *sets)["sft"]
    assert [(verdict.gate, verdict.passed) for verdict in step.stage.judge(WORSE, step.config.gates)] == (
        [] if gate is None else [("heldout_ce_must_not_rise", False)]
    )
    assert step.config.gates.model_dump() == {"heldout_ce_must_not_rise": gate}
    assert step.key == steps_of("tiny")["sft"].key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "assessment.evaluate.recipe.max_documents=null",
            "none is left to choose on; .* or fine_tuning.choose to null",
        ),
        (
            "assessment.evaluate.recipe={tasks: [{type: cloze}], bits_per_byte: false, reference: a, candidate: b}",
            "none is left to choose on; .* or fine_tuning.choose to null",
        ),
        ("assessment.evaluate.recipe.tasks.0.split=dev", "of the split dev, on which fine_tuning.choose chooses"),
        ("fine_tuning.choose.recipe.exercises.split=test", "set exercises.split to dev"),
        ("models.tuned={recipe: {source: {kind: miniature, name: qwen-base}}}", "'tuned' would name two models"),
    ],
)
def test_a_choice_on_what_is_reported_is_refused(change: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        load_profile("micro", [change])


def test_the_choice_has_a_forecast(tmp_path: Path) -> None:
    profile = load_profile("medius")
    run = cost_of(build(profile), open_store(str(tmp_path)), profile.parallel_stages, CostOptions.read())
    costs = {step.label: step.whole for step in run.steps}
    choose, sft = costs["choose"], costs["sft"]
    assert not choose.warnings
    assert choose.stored == sft.stored
    assert 0 < choose.duration < 0.2 * sft.duration, "two forward passes over a thousand documents"
    assert choose.hardware is not None
    assert choose.hardware.accelerator


def test_only_what_is_in_the_chosen_model_counts_for_its_licence() -> None:
    instructions = "fine_tuning.evolve.recipe.source={kind: dataset, rows: {origin: file, path: own.jsonl}}"
    step = steps_of("micro", instructions)["choose"]
    lineage = planned(step)
    before = {source.name for source in sources(lineage, step.key)}
    assert "own.jsonl" in before, "before it is made, either may be the one"
    for chosen, used in (("tuned", True), ("fused", False)):
        made = Made(**{**vars(lineage[step.key]), "chosen": chosen})
        found = {source.name for source in sources({**lineage, step.key: made}, step.key)}
        assert ("own.jsonl" in found) is used
        assert "qwen-student" in found
        assert {source.name for source in sources({**lineage, step.key: made}, step.key, all_candidates=True)} == before
