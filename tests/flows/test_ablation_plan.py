"""What an ablation tries, that a written choice is what was measured, and what is refused before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.ablation_grid import AS_PROFILE, STRATEGIES, fusion_candidates
from flows.ablation_plan import Kind, plan_ablation
from flows.ablation_steps import ablation_steps
from flows.dag import build
from flows.profile_edit import edited
from flows.profiles import load_profile
from tasks.artifacts.errors import BadInputError
from tests.golden.keys import constant_content

Micro = Callable[..., Path]


@pytest.fixture(autouse=True, scope="module")
def _content() -> Iterator[None]:
    """Sources are not read: it would cost seconds for each profile that is loaded."""
    with constant_content():
        yield


CLOZE_ALONE = (
    "assessment.evaluate.recipe={tasks: [{type: cloze}], bits_per_byte: false, max_documents: null, reference: base,"
    "candidate: final}"
)
"""An evaluation that measures no text as such, and reads all of them for its items."""
DOCUMENTS = "assessment.evaluate.recipe.max_documents=4"


@pytest.mark.parametrize("kind", ["reversion", "fusion"])
def test_a_choice_that_was_written_is_made_already(kind: Kind, micro: Micro) -> None:
    """The profile's next run finds the candidate's artifact: same stage, label and key."""
    path = micro()
    profile = load_profile(str(path), [DOCUMENTS])
    plan = plan_ablation(kind, profile)
    steps = ablation_steps(plan, profile)
    text = path.read_text()
    assert len(plan.edits) == len(plan.candidates) - 1 >= 3
    assert list(steps.candidates) == list(plan.candidates)
    for name in [*plan.candidates][:: 1 if kind == "reversion" else 3]:
        candidate = steps.candidates[name]
        path.write_text(edited(text, plan.edits.get(name, ())))
        own = {step.label: step for step in build(load_profile(str(path), [DOCUMENTS]))}
        assert own[plan.varies].directory == candidate.directory, name


def test_the_steps_are_the_recipes_own_up_to_what_is_varied() -> None:
    profile = load_profile("micro", [DOCUMENTS])
    own = {step.key for step in build(profile)}
    ablated = ablation_steps(plan_ablation("reversion", profile), profile)
    assert set(ablated.candidates) == set(STRATEGIES)
    assert list(ablated.others) == ["trained", "original"]
    new = [ablated.name_of(step) for step in ablated.all if step.key not in own]
    other = sorted(f"revert-llama-{name}" for name in STRATEGIES if name != "original_rows")
    assert sorted(new[:-1]) == other
    assert new[-1] == "compare-reversion-llama"
    comparison = ablated.comparison
    assert comparison.config.recipe.model_dump()["reference"] == "original"
    assert comparison.config.recipe.model_dump()["skip_documents"] == 4
    assert (
        comparison.inputs["corpus"].key == next(s for s in build(profile) if s.label == "evaluate").inputs["corpus"].key
    )

    fused = ablation_steps(plan_ablation("fusion", profile), profile)
    assert set(fused.others) == {"base", "branch-llama", "branch-qwen"}
    assert fused.comparison.config.recipe.model_dump()["reference"] == "branch-qwen", "whose chat the fusion takes"


@pytest.mark.parametrize("kind", ["reversion", "fusion"])
@pytest.mark.parametrize(
    ("measured", "left_out"), [("max_documents=2, skip_documents=3", 5), ("bits_per_byte=false", 0)]
)
def test_no_text_of_the_evaluation_is_chosen_on(kind: Kind, measured: str, left_out: int) -> None:
    sets = [f"assessment.evaluate.recipe.{change}" for change in measured.split(", ")]
    plan = plan_ablation(kind, load_profile("micro", sets))
    assert plan.comparison.recipe.skip_documents == left_out


def test_a_grid_of_the_profile_takes_the_place_of_the_default() -> None:
    grid = (
        "ablations={reversion: [original_rows], fusion: ["
        "{merge_method: ties, each: {density: 0.4}, weights: [[0.5, 0.5], [0.7, 0.3]], parameters: {normalize: true}},"
        "{merge_method: slerp, base_model: qwen, parameters: {t: 0.3}}]}"
    )
    profile = load_profile("micro", [grid])
    candidates = fusion_candidates(profile.fusion.fuse.recipe, profile.ablations.fusion)
    assert list(candidates) == [
        AS_PROFILE, "ties-0.5-0.5-density-0.4", "ties-0.7-0.3-density-0.4", "slerp-t-0.3-base-qwen"
    ]  # fmt: skip
    ties = candidates["ties-0.7-0.3-density-0.4"]
    assert ties.models["llama"].parameters == {"density": 0.4, "weight": 0.7}
    assert (ties.dtype, ties.out_dtype, ties.chat_from) == ("float32", "float32", "qwen"), "the profile's own"
    # What the profile has already is not made and measured twice.
    same = "ablations.fusion=[{merge_method: ties, each: {density: 0.66}, weights: [[0.5, 0.5]]}]"
    alike = load_profile("micro", [same, "fusion.fuse.recipe.models={llama: {parameters: {density: 0.66, weight: 0.5}},"
        "qwen: {parameters: {density: 0.66, weight: 0.5}}}", "fusion.fuse.recipe.parameters={}"])  # fmt: skip
    assert list(fusion_candidates(alike.fusion.fuse.recipe, alike.ablations.fusion)) == [AS_PROFILE]


def test_nothing_of_an_ablation_is_in_a_key() -> None:
    more = ["ablations.compare.num_arithmetic=10", "ablations.reversion=[shared_trained]"]
    assert [step.key for step in build(load_profile("micro", more))] == [
        step.key for step in build(load_profile("micro"))
    ]


@pytest.mark.parametrize(
    ("kind", "sets", "branch", "message"),
    [
        (
            "fusion",
            ["assessment.evaluate.recipe.max_documents=null", "fine_tuning.choose=null"],
            None,
            "none is left to",
        ),
        *[
            (kind, [CLOZE_ALONE, "fine_tuning.choose=null"], None, "none is left to")
            for kind in ("reversion", "fusion")
        ],
        (
            "fusion",
            ["ablations.fusion=[{merge_method: ties, weights: [[1]]}]"],
            None,
            r"weights \[1.0\] for 2 b",
        ),
        ("fusion", ["ablations.fusion=[{merge_method: sce}, {merge_method: sce}]"], None, "would be called sce"),
        ("fusion", ["ablations.fusion=[{merge_method: slerp, base_model: x}]"], None, "slerp-base-x is no fusion"),
        ("fusion", ["ablations.fusion=[{merge_method: slerp, parameters: {t: 0.5}}]"], None, "slerp merges 2 models"),
        ("fusion", ["ablations.fusion=[{merge_method: karcher}]"], None, "karcher merges a base_model like any other"),
        ("reversion", [], "qwen", "reverted with --branch: llama"),
        ("reversion", ["branches.llama.surgeon=null", "branches.llama.revert=null"], None, "no branch of micro has"),
        (
            "reversion",
            ["ablations.reversion=[guess]"],
            None,
            "'guess' is no strategy of reversion; there are",
        ),
        ("fusion", ["ablations.fusion=[{merge_method: average}]"], None, r"ablations\.fusion\.0\.merge_method"),
    ],
)
def test_what_cannot_be_ablated_is_refused(kind: Kind, sets: list[str], branch: Any, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        plan_ablation(kind, load_profile("micro", sets), branch)
