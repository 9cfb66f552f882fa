"""The arms of `medius ablate recipe`: what they share with the profile's run, and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.ablation_recipe import CE_ONLY, FULL, RecipeArms, plan_recipe
from flows.ablation_recipe_report import (
    Budget,
    arms_table,
    made_of,
    measured_on,
    pairs_of,
    pairs_table,
    write_report,
)
from flows.dag import build
from flows.profiles import load_profile
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import sha256_hex
from tasks.artifacts.manifest import Manifest, ObjectRecord, Provenance, digest_of
from tasks.artifacts.store import Store
from tasks.distill.stage import DistillRecipe
from tasks.evaluate.results import Measured, build_results
from tasks.evaluate.stage import EvaluateRecipe
from tasks.runtime.declare import Step
from tasks.sft.stage import ReplayingSftRecipe
from tests.golden.keys import constant_content

ARMS = ["base", "ce-only", "ce-only-sft", "llama-alone", "llama-alone-sft", "qwen-alone", "qwen-alone-sft", "all",
        "all-sft"]  # fmt: skip


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
    shared = {"base": "model-base", "all": "fuse", "all-sft": "sft"}
    assert {name: arms.arms[name].directory for name in shared} == {
        name: own[label].directory for name, label in shared.items()
    }
    new = {step.label for step in arms.all if step.key in arms.own}
    tuned = {"sft-twins", "sft-llama-alone", "sft-qwen-alone"}
    alone = {"distill-llama-alone", "revert-llama-alone", "distill-qwen-alone"}
    assert new == {"revert-twin-llama", "fuse-twins", *alone, *tuned, "evaluate-arms"}, "tiny's run trains the twins"
    assert {step.directory for step in arms.all if step.key not in arms.own} <= {
        step.directory for step in own.values()
    }


def test_a_profile_without_twins_gets_them_on_the_same_tokens_and_steps() -> None:
    arms, own = planned("micro")
    steps = {step.label: step for step in arms.all}
    assert {label for label, step in steps.items() if step.key in arms.own} == {
        "twin-llama", "twin-qwen", "revert-twin-llama", "fuse-twins", "sft-twins", "sft-llama-alone", "sft-qwen-alone",
        "distill-llama-alone", "revert-llama-alone", "distill-qwen-alone", "evaluate-arms",
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
    for name in ("ce-only", "llama-alone", "qwen-alone"):
        tuned = arms.arms[f"{name}-sft"]
        assert tuned.inputs["corpus"].key == own["corpus-sft"].key
        assert tuned.inputs["model"] is arms.arms[name]
        assert tuned.config.recipe == own["sft"].config.recipe
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
        # Cloze items have no split: they are of the texts.
        assert {task.model_dump().get("split", "dev") for task in recipe.tasks} == {"dev"}
        assert {task.model_dump().get("split", "test") for task in reported.tasks} == {"test"}
        assert (recipe.reference, recipe.candidate, recipe.parents, recipe.twins) == (reported.reference, FULL, (), {})
        assert arms.evaluation.inputs["corpus"].key == own["evaluate"].inputs["corpus"].key


def test_the_arms_answer_cloze_items_of_the_texts_that_are_not_reported() -> None:
    cloze = "assessment.evaluate.recipe.tasks=[{type: cloze, items: 40}]"
    arms, own = planned("tiny", cloze, "assessment.evaluate.gates.min_items=null")
    recipe, reported = arms.evaluation.config.recipe, own["evaluate"].config.recipe
    assert recipe.tasks == reported.tasks
    assert recipe.skip_documents == reported.max_documents, "other texts, and so other items"


def test_the_budget_is_that_of_the_recipe_s_own_trainings() -> None:
    arms, _ = planned("smollm2")
    assert {name: [step.label for step in arms.trainings(name)] for name in arms.arms} == {
        "base": [],
        "ce-only": ["twin-llama", "twin-qwen"],
        "ce-only-sft": ["twin-llama", "twin-qwen", "sft-twins"],
        "llama-alone": ["distill-llama-alone"],
        "llama-alone-sft": ["distill-llama-alone", "sft-llama-alone"],
        "qwen-alone": ["distill-qwen-alone"],
        "qwen-alone-sft": ["distill-qwen-alone", "sft-qwen-alone"],
        "all": ["distill-llama", "distill-qwen"],
        "all-sft": ["distill-llama", "distill-qwen", "sft"],
    }, "base and qwen-teacher were trained before the recipe"


@pytest.mark.parametrize(("length", "twice"), [("steps=7", 14), ("epochs=1.5", 3.0)])
def test_a_teacher_alone_spends_what_all_branches_spend(length: str, twice: float) -> None:
    field = length.partition("=")[0]
    other = "epochs" if field == "steps" else "steps"
    sets = [
        f"branches.{name}.distill.recipe.{given}" for name in ("llama", "qwen") for given in (length, f"{other}=null")
    ]
    arms, own = planned("micro", *sets)
    steps = {step.label: step for step in arms.all}
    recipe, usual = (each.config.recipe for each in (steps["distill-qwen-alone"], own["distill-qwen"]))
    assert isinstance(recipe, DistillRecipe)
    assert isinstance(usual, DistillRecipe)
    assert (getattr(recipe, field), getattr(recipe, other)) == (twice, None)
    assert recipe.model_copy(update={field: getattr(usual, field)}) == usual, "nothing else differs"
    assert steps["distill-qwen-alone"].inputs == own["distill-qwen"].inputs
    back = steps["revert-llama-alone"]
    assert back.config == own["revert-llama"].config
    assert back.inputs["trained"].label == "distill-llama-alone"
    assert back.inputs["original"].key == own["revert-llama"].inputs["original"].key


def test_a_teacher_alone_spends_the_sum_of_branches_of_different_lengths() -> None:
    own = ["branches.llama.distill.recipe.steps=20", "branches.llama.distill.recipe.embedding_steps=4"]
    arms, _ = planned("micro", *own, "branches.qwen.distill.recipe.steps=40")
    steps = {step.label: step for step in arms.all}
    for name, warming in (("llama", 12), ("qwen", 0)):
        recipe = steps[f"distill-{name}-alone"].config.recipe
        assert isinstance(recipe, DistillRecipe)
        assert (recipe.steps, recipe.embedding_steps) == (60, warming)


def test_the_production_profile_s_arms_answer_cloze_items_of_texts_of_their_own() -> None:
    arms, own = planned("medius")
    recipe, reported = arms.evaluation.config.recipe, own["evaluate"].config.recipe
    assert [task.type for task in recipe.tasks] == ["cloze"]
    assert (recipe.skip_documents, recipe.max_documents) == (reported.max_documents, 500)


def tasks_of(name: str) -> str:
    return f"ablations.recipe.tasks=[{{type: lm_eval, name: {name}, metric: acc}}]"


@pytest.mark.parametrize(
    ("profile", "sets", "message"),
    [
        ("medius", ["ablations.recipe.tasks=[]"], r"name tasks of their own in ablations\.recipe\.tasks"),
        ("micro", ["branches.llama.distill.recipe.steps=null", "branches.llama.distill.recipe.epochs=1"],
         r"states epochs and branches\.qwen\.distill\.recipe does not"),
        (
            "micro",
            ["assessment.evaluate.recipe.max_documents=null", "fine_tuning.choose=null"],
            "none is left to choose on",
        ),
        (
            "tiny",
            [
                "assessment.evaluate.recipe.tasks=[{type: cloze, items: 40}]",
                "assessment.evaluate.recipe.bits_per_byte=false",
                "assessment.evaluate.recipe.max_documents=null",
                "fine_tuning.choose=null",
            ],
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


def test_like_is_compared_with_like() -> None:
    arms, _ = planned("tiny")
    assert {name: arms.compared_with(name) for name in arms.arms} == {
        "base": "all-sft",
        "ce-only": "all",
        "ce-only-sft": "all-sft",
        "llama-alone": "all",
        "llama-alone-sft": "all-sft",
        "qwen-alone": "all",
        "qwen-alone-sft": "all-sft",
        "all": "all-sft",
        "all-sft": None,
    }


def test_an_arm_replays_no_teacher_but_its_own() -> None:
    replayed = ["fine_tuning.replay={branch: qwen}", "fine_tuning.sft.recipe.replay={weight: 0.2, forward_kl: 1.0}"]
    arms, _ = planned("micro", *replayed)
    weights = {}
    for name, step in arms.arms.items():
        recipe = step.config.recipe
        if isinstance(recipe, ReplayingSftRecipe):
            weights[name] = recipe.replay.forward_kl
    assert weights == {"ce-only-sft": 0, "llama-alone-sft": 0, "qwen-alone-sft": 1, "all-sft": 1}


BITS = {"base": 24.0, "ce-only": 23.0, "ce-only-sft": 20.0, "llama-alone": 21.0, "llama-alone-sft": 18.5,
        "qwen-alone": 20.5, "qwen-alone-sft": 18.0, "all": 20.0, "all-sft": 17.0}  # fmt: skip


def finished(arms: RecipeArms, store: Store) -> dict[str, Any]:
    """Writes what an evaluation of the arms keeps: four documents of 10 bytes, and four items of one task."""
    recipe = arms.evaluation.config.recipe
    assert isinstance(recipe, EvaluateRecipe)
    measured, files = {}, {}
    harness = {"tasks": {"exercise_add": {"metric": "exact_match"}}, "version": "0"}
    about = {"harness": harness, "start_token": True, "window_tokens": 64}
    for number, (name, bits) in enumerate(BITS.items()):
        items = [
            {"entry": "exercise_add", "task": "exercise_add", "item": at, "outcome": float(at * 2 < number - 1)}
            for at in range(4)
        ]
        documents = [
            {"document": f"{at}", "bits": bits + (at * number) % 3, "num_bytes": 10, "tokens": 4} for at in range(4)
        ]
        measured[name] = Measured(items, documents, about)
        for folder, records in (("samples", items), ("documents", documents)):
            files[f"{folder}/{name}.jsonl"] = "".join(json.dumps(each) + "\n" for each in records).encode()
    results = build_results(measured, recipe)
    step, objects = arms.evaluation, []
    for name, data in {**files, "results.json": json.dumps(results).encode()}.items():
        store.create(f"{step.directory}/data/{name}", data)
        objects.append(ObjectRecord(name=name, path=f"data/{name}", size=len(data), sha256=sha256_hex(data)))
    nothing: dict[str, Any] = {"recipe": {}, "inputs": {}, "metrics": {}}
    unknown: dict[str, Any] = {"flow_run": None, "git_sha": None, "git_dirty": None}
    provenance = Provenance(
        write_id="one", created="", seconds=0, attempts=1, hardware={}, versions={}, runtime={}, **unknown
    )
    told: dict[str, Any] = {"stage": "evaluate", "version": 4, "label": step.label, "key": step.key}
    manifest = Manifest(digest=digest_of(objects), objects=tuple(objects), provenance=provenance, **told, **nothing)
    Artifact(store, step.directory).commit(manifest)
    return results


def test_the_table_pairs_like_with_like_and_states_budgets(tmp_path: Path, store: Store) -> None:
    arms, _ = planned("tiny")
    results = finished(arms, store)
    pairs = pairs_of(arms, store)
    assert set(pairs) == set(ARMS) - {"all-sft"}
    half, whole = Budget(("distill-a",), 20, 10_000, 4_500), Budget(("distill-a", "distill-b"), 40, 20_000, 9_000)
    tuned = Budget((*whole.trainings, "sft"), 60, 30_000, 12_000)
    half_tuned = Budget(("distill-a", "sft"), 40, 20_000, 7_500)
    budgets = {
        name: Budget(()) if name == "base" else (half_tuned if name.endswith("-sft") else half)
        if "-alone" in name else tuned if name.endswith("-sft") else whole
        for name in ARMS
    }  # fmt: skip
    table = arms_table(results, budgets)
    against = {name: arms.compared_with(name) for name in ARMS}
    differences = pairs_table(budgets, against, pairs)
    assert next(row for row in table.rows if row[0] == "all")[1:4] == ("40", "20,000", "9,000")
    rows = {row[0]: dict(zip(differences.columns, row, strict=True)) for row in differences.rows}
    # The evaluation's own pairs have the full recipe minus the others.
    own = results["paired"]["all-sft"]["llama-alone-sft"]["bits_per_byte"]
    assert pairs["llama-alone-sft"]["bits_per_byte"]["difference"] == pytest.approx(-own["difference"])
    assert pairs["llama-alone-sft"]["bits_per_byte"]["z"] == pytest.approx(-own["z"])
    difference = pairs["llama-alone"]["bits_per_byte"]["difference"]
    found = {name: results["models"][name]["bits_per_byte"]["value"] for name in ("llama-alone", "all")}
    assert difference == pytest.approx(found["llama-alone"] - found["all"])
    row = rows["llama-alone"]
    assert (row["minus"], row["of its tokens"]) == ("all", "50 %")
    assert row["bits per byte"].startswith(f"{difference:+.4f} ± ")
    assert "(z " in row["bits per byte"]
    assert (rows["qwen-alone-sft"]["minus"], rows["qwen-alone-sft"]["of its tokens"]) == ("all-sft", "67 %")
    assert (rows["all"]["minus"], rows["base"]["of its tokens"]) == ("all-sft", "0 %")
    assert set(rows) == set(ARMS) - {"all-sft"}
    assert made_of(budgets)[0] == "base: no training"
    assert made_of(budgets)[-1] == "all-sft: distill-a + distill-b + sft"
    told = measured_on(results, budgets, against)
    assert "the column says what each arm spent" in told
    alike = {name: budget if name == "base" else tuned if "-sft" in name else whole for name, budget in budgets.items()}
    told = measured_on(results, alike, against)
    report = write_report(tmp_path / "x", "A title", results, budgets, differences, told)
    text = report.read_text()
    assert table.markdown() in text
    assert differences.markdown() in text
    assert "Measured on 4 items and 4 held-out texts (40 bytes)" in text
    assert "read the same texts" in text
    assert "differ in teachers and not in tokens" in text
    assert "test split" not in text, "what the evaluation reports is not known here"
    assert (tmp_path / "x" / "results.png").read_bytes().startswith(b"\x89PNG")
