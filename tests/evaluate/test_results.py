"""results.json out of answers that are made up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from tasks.artifacts.errors import BadInputError
from tasks.evaluate.results import Measured, build_results, gate_metrics
from tasks.evaluate.shards import parts_of
from tasks.evaluate.stage import EvaluateRecipe
from tasks.modeling.statistics import mean_with_error, paired_mean

RECIPE: dict[str, Any] = {
    "tasks": [{"type": "exercises", "kinds": ["add"]}],
    "reference": "base",
    "candidate": "final",
    "bits_per_byte": False,
}


def items_of(outcomes: dict[str, Sequence[float]], entry: str, **fields: Sequence[Any]) -> list[dict[str, Any]]:
    """Items of these tasks; each of `fields` has a value for every item of a task."""
    return [
        {
            "entry": entry,
            "task": task,
            "item": item,
            "document": f"{task}-{item}",
            "outcome": outcome,
            **{name: values[item] for name, values in fields.items()},
        }
        for task, own in outcomes.items()
        for item, outcome in enumerate(own)
    ]


def measured(items: list[dict[str, Any]], version: str = "1") -> Measured:
    tasks = {item["task"]: {"version": version, "num_fewshot": 3, "metric": "acc_norm"} for item in items}
    return Measured(items, [], {"harness": {"lm_eval": "0", "tasks": tasks}, "tokenizer": {}})


def results_of(**models: Measured) -> dict[str, Any]:
    return build_results(models, EvaluateRecipe.model_validate(RECIPE))


def test_a_group_has_the_mean_over_the_items_of_its_tasks() -> None:
    outcomes: dict[str, Sequence[float]] = {"bbh_snarks": [1.0, 0.0, 1.0, 1.0, 0.0, 1.0], "bbh_dates": [0.0, 0.0]}
    same = measured(items_of(outcomes, "leaderboard_bbh"))
    results = results_of(base=same, final=same)
    pooled = mean_with_error([*outcomes["bbh_snarks"], *outcomes["bbh_dates"]])
    # Not the mean of the tasks' means, 0.333.
    assert pooled["value"] == 0.5
    assert results["models"]["final"]["entries"] == {"leaderboard_bbh": {"metric": "acc_norm", **pooled}}
    assert set(results["models"]["final"]["tasks"]) == set(outcomes)


def test_differences_are_told_for_each_entry() -> None:
    """Better at one and worse at the other: nothing is seen over all items."""
    base = [*items_of({"sums": [0, 0, 1, 0]}, "sums"), *items_of({"a": [1, 1], "b": [1, 0]}, "letters")]
    final = [*items_of({"sums": [1, 1, 1, 0]}, "sums"), *items_of({"a": [0, 1], "b": [0, 0]}, "letters")]
    pair = results_of(base=measured(base), final=measured(final))["paired"]["final"]["base"]
    assert pair["accuracy"]["difference"] == 0
    assert pair["entries"] == {
        "sums": paired_mean([1, 1, 1, 0], [0, 0, 1, 0]),
        "letters": paired_mean([0, 1, 0, 0], [1, 1, 1, 0]),
    }


def test_a_large_task_does_not_outweigh_a_small_one_in_the_mean() -> None:
    base = [*items_of({"large": [0, 1] * 20}, "large"), *items_of({"small": [1, 1, 1, 0]}, "small")]
    final = [*items_of({"large": [1, 1, 1, 0] * 10}, "large"), *items_of({"small": [0, 0, 1, 0]}, "small")]
    metrics = gate_metrics(results_of(base=measured(base), final=measured(final)))
    assert metrics["candidate_over_reference"] > 0
    large, small = paired_mean([1, 1, 1, 0] * 10, [0, 1] * 20), paired_mean([0, 0, 1, 0], [1, 1, 1, 0])
    assert metrics["mean_over_reference"] == pytest.approx((large["difference"] + small["difference"]) / 2)
    assert metrics["mean_over_reference"] < 0
    assert metrics["mean_over_reference_stderr"] == pytest.approx(math.hypot(large["stderr"], small["stderr"]) / 2)
    z = metrics["mean_over_reference"] / metrics["mean_over_reference_stderr"]
    assert metrics["mean_over_reference_z"] == pytest.approx(z)


def test_one_question_in_several_tasks_counts_as_one() -> None:
    """As in GPQA, where diamond is a part of main and that one of extended."""
    base: dict[str, Sequence[float]] = {"diamond": [1, 0, 0, 1], "main": [1, 0, 0, 1], "extended": [1, 0, 0, 1]}
    final: dict[str, Sequence[float]] = {"diamond": [1, 1, 0, 0], "main": [1, 1, 0, 0], "extended": [1, 1, 0, 0]}
    questions = ["q0", "q1", "q2", "q3"]
    other = items_of({"sums": [1, 0, 1]}, "sums")
    results = results_of(
        base=measured([*items_of(base, "gpqa", cluster=questions), *other]),
        final=measured([*items_of(final, "gpqa", cluster=questions), *other]),
    )
    once = mean_with_error([1, 1, 0, 0])["stderr"]
    own = results["models"]["final"]
    assert own["entries"]["gpqa"]["stderr"] == pytest.approx(once)
    assert (own["entries"]["gpqa"]["n"], own["entries"]["gpqa"]["clusters"]) == (12, 4)
    assert own["tasks"]["main"]["stderr"] == pytest.approx(once)
    pair = results["paired"]["final"]["base"]
    assert pair["entries"]["gpqa"]["stderr"] == pytest.approx(paired_mean([1, 1, 0, 0], [1, 0, 0, 1])["stderr"])
    # Of an item without a cluster there is one.
    assert (own["accuracy"]["n"], own["accuracy"]["clusters"]) == (15, 7)
    assert "clusters" not in own["entries"]["sums"]


def test_answers_to_different_questions_are_not_compared() -> None:
    base, final = (items_of({"sums": [1.0, 0.0]}, "gpqa") for _ in range(2))
    final[1]["document"] = "shuffled"
    said = r"final and base were asked different questions as item 1 of task sums.*shards/model-\*-gpqa.json"
    with pytest.raises(BadInputError, match=said):
        results_of(base=measured(base), final=measured(final))
    with pytest.raises(BadInputError, match=r"base and final were evaluated by different versions .* \(sums\)"):
        results_of(base=measured(base), final=measured(base, version="2"))


def test_two_measurements_never_share_a_name() -> None:
    recipe = {**RECIPE, "tasks": [{"type": "lm_eval", "name": "b-bits", "metric": "acc"}], "bits_per_byte": True}
    assert len(parts_of(EvaluateRecipe.model_validate(recipe), ["a", "b"])) == 4
    with pytest.raises(BadInputError, match="results of a and a-b would both be model-a-b-bits; give one of the two"):
        parts_of(EvaluateRecipe.model_validate(recipe), ["a", "a-b"])
