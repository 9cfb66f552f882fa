"""`--smoke`: the same DAG, and little enough of everything that each stage still has work."""

from __future__ import annotations

import pytest

from flows.dag import build
from flows.profiles import load_profile
from flows.smoke import shrink
from tasks.benchmarks.cloze_items import Text, cloze_items
from tasks.benchmarks.declare import ClozeTasks
from tasks.exercises.library_text import library_documents
from tests.golden.keys import constant_content, profile_names


@pytest.mark.parametrize("profile", profile_names())
def test_smoke_is_the_same_dag_under_other_keys(profile: str) -> None:
    with constant_content():
        full, smoke = build(load_profile(profile)), build(load_profile(profile, smoke=True))

    def shape(steps: object) -> list[tuple[str, str, dict[str, str]]]:
        assert isinstance(steps, list)
        return [
            (step.label, step.stage.name, {role: source.label for role, source in step.inputs.items()})
            for step in steps
        ]

    assert shape(full) == shape(smoke)
    # All that takes an amount of data, and all that is made of it, is other work than the full run's.
    whole = {"models", "reshape", "surgeon"}
    assert not {step.key for step in smoke if step.stage.name not in whole} & {step.key for step in full}


def test_smoke_bounds_what_takes_everything() -> None:
    extra = "fine_tuning.clean.recipe.evaluations=[{type: lm_eval, name: gsm8k}]"
    with constant_content():
        smoke = load_profile("medius", [extra], smoke=True)
    assert smoke.fine_tuning.clean is not None
    assert [each.name for each in smoke.fine_tuning.clean.recipe.evaluations if each.type == "lm_eval"] == ["gsm8k"]
    source = smoke.fine_tuning.evolve.recipe.source
    assert source.kind == "dataset"
    assert source.max_rows == 64
    tasks = [task for task in smoke.assessment.evaluate.recipe.tasks if task.type == "lm_eval"]
    assert all(task.limit for task in tasks)
    assert {task.cluster for task in tasks} == {None}, "the first four questions of MuSR may be of one story"


@pytest.mark.parametrize("profile", ["smollm2", "medius"])
def test_a_smoke_run_s_texts_hold_its_cloze_items(profile: str) -> None:
    with constant_content():
        smoke = load_profile(profile, smoke=True)
    choice, reported = smoke.fine_tuning.choose, smoke.assessment.evaluate.recipe
    assert choice is not None
    asked = [*reported.tasks, *([choice.recipe.cloze] if choice.recipe.cloze is not None else [])]
    cloze = [task for task in asked if isinstance(task, ClozeTasks)]
    assert cloze
    texts = [Text(str(number), text) for number, text in enumerate(library_documents(60_000))]
    assert reported.max_documents == 16
    for start in range(len(texts) - 16):
        for task in cloze:
            assert len(cloze_items(task, texts[start : start + 16])) == task.items


def test_shrink_leaves_small_amounts_and_other_numbers_alone() -> None:
    document = {"steps": 50_000, "count": 3, "max_bytes": 10, "rate": 0.5, "k": 64, "deep": [{"limit": 9_000_000}]}
    assert shrink(document) == {
        "steps": 50, "count": 3, "max_bytes": 10, "rate": 0.5, "k": 64, "deep": [{"limit": 9_000}]
    }  # fmt: skip
