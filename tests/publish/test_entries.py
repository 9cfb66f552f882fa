"""Benchmarks beside each other, their mean with equal weights, and how near they are to published values."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot
from typing import Any

import pytest

from tasks.evaluate.results import Measured, build_results
from tasks.evaluate.stage import EvaluateRecipe
from tasks.modeling.statistics import mean_with_error, paired_mean
from tasks.publish.entries import (
    entries_table,
    entry_differences_table,
    has_several_entries,
    nearness_note,
    nearness_table,
    tasks_are_entries,
)
from tasks.publish.tables import headline, results_rows, shown_error

RECIPE: dict[str, Any] = {
    "tasks": [{"type": "exercises", "kinds": ["add"]}],
    "reference": "base",
    "candidate": "final",
    "bits_per_byte": False,
}
BASE: dict[str, Sequence[float]] = {"ifeval": [0, 1], "mmlu_pro": [0, 0, 1, 0, 0, 1, 0, 0]}
FINAL: dict[str, Sequence[float]] = {"ifeval": [1, 1], "mmlu_pro": [0, 1, 1, 0, 0, 1, 0, 0]}


def results_of(**models: dict[str, Sequence[float]]) -> dict[str, Any]:
    def measured(outcomes: dict[str, Sequence[float]]) -> Measured:
        items = [
            {"entry": entry, "task": f"{entry}_{number // 4}", "item": number, "outcome": float(outcome)}
            for entry, own in outcomes.items()
            for number, outcome in enumerate(own)
        ]
        tasks = {item["task"]: {"version": "1", "metric": "acc"} for item in items}
        return Measured(items, [], {"harness": {"lm_eval": "0", "tasks": tasks}, "tokenizer": {}})

    return build_results(
        {name: measured(outcomes) for name, outcomes in models.items()}, EvaluateRecipe.model_validate(RECIPE)
    )


def test_a_row_a_benchmark_and_one_for_all_with_equal_weights() -> None:
    results = results_of(base=BASE, other=BASE, final=FINAL)
    assert has_several_entries(results)
    assert not tasks_are_entries(results)
    table = entries_table(results, {"ifeval": 0.832, "mmlu_pro": 0.502, "gpqa": 0.359})
    assert table.columns == ("benchmark", "metric", "items", "base", "other", "final", "published")
    large = mean_with_error(FINAL["mmlu_pro"])
    alike = 1 / (2 + 1)
    assert [row[0] for row in table.rows] == ["ifeval", "mmlu_pro", "mean, equal weights"]
    assert table.rows[0][1:3] == ("acc", "2")
    assert [row[5] for row in table.rows] == [
        f"1.000 ± {alike:.3f}",
        f"0.375 ± {large['stderr']:.3f}",
        # Over all items it would be 0.5.
        f"0.688 ± {hypot(alike, large['stderr']) / 2:.3f}",
    ]
    assert [row[6] for row in table.rows] == ["0.832", "0.502", "0.667"]
    # A mean of one published value would stand beside that of two measured ones.
    assert [row[-1] for row in entries_table(results, {"ifeval": 0.832}).rows] == ["0.832", "–", "–"]
    assert entries_table(results, {"gpqa": 0.3}).columns[-1] == "final"

    turned = table.transposed("model")
    assert turned.columns == ("model", "ifeval", "mmlu_pro", "mean, equal weights")
    assert turned.rows[-1] == ("published", "0.832", "0.502", "0.667")


def test_differences_by_benchmark_are_the_paired_ones() -> None:
    table = entry_differences_table(results_of(base=BASE, final=FINAL))
    assert table.columns == ("benchmark", "base")
    small, large = (paired_mean(FINAL[entry], BASE[entry]) for entry in BASE)
    stderr = hypot(small["stderr"], large["stderr"]) / 2
    assert table.rows == (
        ("ifeval", f"+0.500 ± {small['stderr']:.3f} (z {small['z']:+.1f})"),
        ("mmlu_pro", f"+0.125 ± {large['stderr']:.3f} (z {large['z']:+.1f})"),
        ("mean, equal weights", f"+0.312 ± {stderr:.3f} (z {0.3125 / stderr:+.1f})"),
    )
    same = entry_differences_table(results_of(base=BASE, final=BASE))
    assert {row[1] for row in same.rows} == {"+0.000 ± 0.000"}, "no share: equal answers do differ by nothing"


def test_one_benchmark_is_told_by_the_accuracy_alone() -> None:
    only = {"ifeval": BASE["ifeval"]}
    assert not has_several_entries(results_of(base=only, final=only))


@pytest.mark.parametrize("outcome", [0.0, 1.0])
def test_a_share_of_none_or_all_is_not_certain(outcome: float) -> None:
    estimate = mean_with_error([outcome] * 8)
    assert estimate["stderr"] == 0, "gates and differences are judged on what the deviations say"
    # The far end of Wilson's interval, (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n), at z = 1.
    low, high = ((outcome + 1 / 16 + sign * (1 / 256) ** 0.5) / (1 + 1 / 8) for sign in (-1, 1))
    assert shown_error(estimate) == pytest.approx(high - low)
    assert shown_error(mean_with_error([outcome] * 8, [0, 0, 1, 1, 2, 2, 3, 3])) == 1 / 5
    assert shown_error(mean_with_error([0.5] * 8)) == 0, "no share of rights and wrongs"

    all_alike = {"ifeval": [outcome] * 8}
    results = results_of(base=BASE | all_alike, final=BASE | all_alike)
    assert "Wilson" in headline(results, {})[0]
    assert "Wilson" not in headline(results_of(base=BASE, final=BASE), {})[0]
    (row, *_) = results_rows(results_of(base=all_alike, final=all_alike), {})
    assert row["accuracy"] == f"{outcome:.3f} ± 0.111"
    (near,) = nearness_table(results, {"ifeval": 0.5}).rows
    assert near[-1] == f"{(outcome - 0.5) * 9:+.1f}"


def test_a_group_is_beside_its_published_value_by_its_own_name() -> None:
    part = {"metric": "acc_norm", "value": 0.75, "stderr": 0.2, "n": 4}
    own = {"tasks": {"bbh_snarks": part}, "entries": {"leaderboard_bbh": {**part, "value": 0.5, "stderr": 0.1, "n": 8}}}
    results = {"candidate": "final", "models": {"final": own}}
    expected = {"leaderboard_bbh": 0.25, "bbh_snarks": 0.75, "leaderboard_gpqa": 0.3}
    assert nearness_table(results, expected).rows == (
        ("leaderboard_bbh", "acc_norm", "0.5000 ± 0.1000", "0.2500", "+0.2500", "+2.5"),
        ("bbh_snarks", "acc_norm", "0.7500 ± 0.2000", "0.7500", "+0.0000", "+0.0"),
        ("leaderboard_gpqa", "–", "–", "0.3000", "–", "–"),
    )
    assert "IFEval" not in nearness_note(results, expected)
    assert "prompt_level_strict_acc" not in nearness_note(results, expected)
    own["entries"]["leaderboard_ifeval"] = {**part, "metric": "prompt_level_strict_acc"}
    assert "its mean with inst_level_strict_acc" in nearness_note(results, {"leaderboard_ifeval": 0.832})
