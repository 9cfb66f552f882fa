"""The arms of `medius ablate recipe`: what they share with the profile's run, and what is said of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.ablation_recipe import CE_ONLY, FULL, RecipeArms, plan_recipe
from flows.ablation_recipe_report import Budget, arms_table, made_of, write_report
from flows.dag import build
from flows.profiles import load_profile
from tasks.artifacts.errors import BadInputError
from tasks.distill.stage import DistillRecipe
from tasks.evaluate.stage import EvaluateRecipe
from tasks.runtime.declare import Step
from tests.golden.keys import constant_content

ARMS = ["base", "ce-only", "ce-only-sft", "llama-alone", "qwen-alone", "all", "all-sft"]


@pytest.fixture(autouse=True, scope="module")
def _content() -> Iterator[None]:
    """Sources are not read: it would cost seconds for each profile that is loaded."""
    with constant_content():
        yield


def planned(profile: str, *sets: str) -> tuple[RecipeArms, dict[str, Step]]:
    loaded = load_profile(profile, sets)
    return plan_recipe(loaded), {step.label: step for step in build(loaded)}


def test_what_the_profile_makes_is_no_arm_s_own() -> None:
    arms, own = planned("tiny")
    assert list(arms.arms) == ARMS
    shared = {
        "base": "model-base", "llama-alone": "revert-llama", "qwen-alone": "distill-qwen", "all": "fuse",
        "all-sft": "sft",
    }  # fmt: skip
    assert {name: arms.arms[name].directory for name in shared} == {
        name: own[label].directory for name, label in shared.items()
    }
    new = {step.label for step in arms.all if step.key in arms.own}
    assert new == {"revert-twin-llama", "fuse-twins", "sft-twins", "evaluate-arms"}, "tiny's run trains the twins"
    assert {step.directory for step in arms.all if step.key not in arms.own} <= {
        step.directory for step in own.values()
    }


def test_a_profile_without_twins_gets_them_on_the_same_tokens_and_steps() -> None:
    arms, own = planned("micro")
    steps = {step.label: step for step in arms.all}
    assert {label for label, step in steps.items() if step.key in arms.own} == {
        "twin-llama", "twin-qwen", "revert-twin-llama", "fuse-twins", "sft-twins", "evaluate-arms"
    }  # fmt: skip
    for name in ("llama", "qwen"):
        twin, distilled = steps[f"twin-{name}"], own[f"distill-{name}"]
        assert {role: step.key for role, step in twin.inputs.items()} == {
            role: step.key for role, step in distilled.inputs.items()
        }
        recipe, other = twin.config.recipe, distilled.config.recipe
        assert isinstance(recipe, DistillRecipe)
        assert isinstance(other, DistillRecipe)
        assert recipe.model_copy(update={"loss": other.loss}) == other
        assert (recipe.loss.forward_kl, recipe.loss.reverse_kl, recipe.loss.jsd, recipe.loss.ce) == (0, 0, 0, 1)
    fused = steps["fuse-twins"]
    assert fused.config == own["fuse"].config
    assert fused.inputs["branch.llama"].inputs["trained"].key == steps["twin-llama"].key
    assert fused.inputs["base"].key == own["fuse"].inputs["base"].key
    assert arms.arms["ce-only-sft"].inputs["corpus"].key == own["corpus-sft"].key
    # What a gate says of an arm does not keep it from being measured.
    assert {"fuse", "sft", "sft-twins", "twin-qwen"} <= {step.label for step in arms.unjudged}
    assert "surgeon-llama" not in {step.label for step in arms.unjudged}


def test_the_arms_are_measured_on_what_the_evaluation_does_not_report() -> None:
    for profile in ("micro", "tiny", "smollm2"):
        arms, own = planned(profile)
        recipe, reported = arms.evaluation.config.recipe, own["evaluate"].config.recipe
        assert isinstance(recipe, EvaluateRecipe)
        assert isinstance(reported, EvaluateRecipe)
        assert recipe.skip_documents == reported.max_documents
        assert {task.model_dump()["split"] for task in recipe.tasks} == {"dev"}
        assert {task.model_dump()["split"] for task in reported.tasks} == {"test"}
        assert (recipe.reference, recipe.candidate, recipe.parents, recipe.twins) == (reported.reference, FULL, (), {})
        assert arms.evaluation.inputs["corpus"].key == own["evaluate"].inputs["corpus"].key


def test_the_budget_is_that_of_the_recipe_s_own_trainings() -> None:
    arms, _ = planned("smollm2")
    assert {name: [step.label for step in arms.trainings(name)] for name in arms.arms} == {
        "base": [],
        "ce-only": ["twin-llama", "twin-qwen"],
        "ce-only-sft": ["twin-llama", "twin-qwen", "sft-twins"],
        "llama-alone": ["distill-llama"],
        "qwen-alone": ["distill-qwen"],
        "all": ["distill-llama", "distill-qwen"],
        "all-sft": ["distill-llama", "distill-qwen", "sft"],
    }, "base and qwen-teacher were trained before the recipe"


def tasks_of(name: str) -> str:
    return f"ablations.recipe.tasks=[{{type: lm_eval, name: {name}, metric: acc}}]"


@pytest.mark.parametrize(
    ("profile", "sets", "message"),
    [
        ("medius", [], r"name tasks of their own in ablations\.recipe\.tasks"),
        (
            "micro",
            ["assessment.evaluate.recipe.max_documents=null", "fine_tuning.choose=null"],
            "none is left to choose on",
        ),
        ("micro", ["models.all={recipe: {source: {kind: miniature, name: qwen-base}}}",
                   "assessment.baselines=[all]", "assessment.evaluate.recipe.reference=all"], "'all' is called like"),
        ("tiny", ["ablations.recipe.tasks=[{type: exercises, kinds: [sort]}]"], "set their split to dev"),
        ("tiny", ["assessment.evaluate.recipe.tasks.0.split=dev", "fine_tuning.choose=null"],
         r"split dev that the evaluation reports \(.*sort"),
        ("medius", [tasks_of("leaderboard_bbh")], "leaderboard_bbh, and the evaluation reports leaderboard_bbh,"),
        ("medius", [tasks_of("leaderboard_musr_team_allocation")], "evaluation reports leaderboard_musr, which by th"),
        ("medius", [tasks_of("leaderboard")], "has leaderboard, and the evaluation reports leaderboard_ifeval"),
        ("medius", [tasks_of("arc_easy")], r"name: arc_easy\} to fine_tuning\.clean\.recipe\.evaluations"),
        ("medius", [tasks_of("arc_easy"), "fine_tuning.clean=null"],
         r"to branches\.llama\.corpus\.recipe\.decontamination\.evaluations"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(profile: str, sets: list[str], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        planned(profile, *sets)


CLEANED_OF = "fine_tuning.clean.recipe.evaluations=[{type: lm_eval, name: arc_easy}]"
BRANCHES_OF = [
    f"branches.{name}.corpus.recipe.decontamination.evaluations=[{{type: lm_eval, name: arc_easy}}]"
    for name in ("llama", "qwen")
]


@pytest.mark.parametrize(
    "cleaning", [CLEANED_OF, "fine_tuning.clean=null", "fine_tuning.clean.recipe.decontamination=null"]
)
def test_benchmarks_of_their_own_take_the_place_of_exercises(cleaning: str) -> None:
    arms, _ = planned("medius", tasks_of("arc_easy"), cleaning, *BRANCHES_OF)
    recipe = arms.evaluation.config.recipe
    assert isinstance(recipe, EvaluateRecipe)
    assert recipe.entries == ["arc_easy"]
    assert "twin-llama" in {step.label for step in arms.all if step.key in arms.own}
    assert CE_ONLY in arms.arms


def test_the_table_states_budgets_and_differences_to_the_full_recipe(tmp_path: Path) -> None:
    def model(bits: float, right: float) -> dict[str, Any]:
        return {
            "bits_per_byte": {"value": bits, "stderr": 0.01, "documents": 13, "bytes": 900},
            "accuracy": {"value": right, "stderr": 0.02, "n": 300},
        }

    results = {
        "reference": "base",
        "candidate": FULL,
        "models": {"base": model(2.5, 0.1), "all": model(2.2, 0.2), FULL: model(2.1, 0.6)},
        "paired": {
            FULL: {
                "base": {
                    "bits_per_byte": {"difference": -0.4, "stderr": 0.02, "z": -20.0},
                    "accuracy": {"difference": 0.5, "stderr": 0.03, "z": 16.7},
                },
                "all": {
                    "bits_per_byte": {"difference": -0.1, "stderr": 0.02, "z": -5.0},
                    "accuracy": {"difference": 0.0, "stderr": 0.0, "z": None},
                },
            }
        },
    }
    budgets = {
        "base": Budget(()),
        "all": Budget(("distill-a", "distill-b"), 40, 20_000, 9_000),
        FULL: Budget(("distill-a", "distill-b", "sft"), 60, 30_000, 12_000),
    }
    table = arms_table(results, budgets)
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert (rows["all"]["steps"], rows["all"]["tokens"], rows["all"]["targets"]) == ("40", "20,000", "9,000")
    assert rows["base"]["bits per byte minus all-sft"] == "+0.4000 ± 0.0200 (z +20.0)"
    assert rows["base"]["accuracy minus all-sft"] == "-0.500 ± 0.030 (z -16.7)"
    assert rows["all"]["accuracy minus all-sft"] == "+0.000 ± 0.000"
    assert rows[FULL]["accuracy minus all-sft"] == "–"
    assert made_of(budgets) == [
        "base: no training",
        "all: distill-a + distill-b",
        f"{FULL}: distill-a + distill-b + sft",
    ]
    report = write_report(tmp_path / "x", "A title", results, budgets)
    text = report.read_text()
    assert table.markdown() in text
    assert "Measured on 300 items and 13 held-out texts (900 bytes)" in text
    assert "read the same texts" in text
    assert "fewer trainings read fewer tokens" in text
    assert "test split" not in text, "what the evaluation reports is not known here"
    assert (tmp_path / "x" / "results.png").read_bytes().startswith(b"\x89PNG")
