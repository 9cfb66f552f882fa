"""What the stage declares: its gates, its recipe, and that neither needs torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from tasks.dump_logits.stage import STAGE, DumpLogitsGates, DumpLogitsRecipe, DumpLogitsRuntime, judge


def test_gates_judge_mass_and_gold_error() -> None:
    gates = DumpLogitsGates(min_captured_mass=0.8, max_gold_error=0.01)
    good = judge({"captured_mass": 0.9, "gold_error": 0.001}, gates)
    assert [(result.gate, result.passed) for result in good] == [("min_captured_mass", True), ("max_gold_error", True)]
    assert not any(result.passed for result in judge({"captured_mass": 0.7, "gold_error": 0.1}, gates))
    assert not any(result.passed for result in judge({}, gates))


def test_the_recipe_has_one_spelling_and_refuses_what_cannot_work() -> None:
    base = {"teacher": {"dtype": "bfloat16"}}
    recipe = DumpLogitsRecipe.model_validate(base | {"splits": ["heldout", "train"], "temperatures": [4, 2]})
    assert recipe.splits == ("train", "heldout")
    assert recipe.temperatures == (2.0, 4.0)
    for changes in (
        {"temperatures": [1]},
        {"temperatures": [2, 2]},
        {"temperatures": [-1]},
        {"splits": []},
        {"splits": ["train", "train"]},
        {"num_kept": 0},
        {"teacher": {"dtype": "float32", "attention": "flash_attention_2"}},
        {"teacher": {"dtype": "float32", "quantisation": "fp8"}},
    ):
        with pytest.raises(ValidationError):
            DumpLogitsRecipe.model_validate(base | changes)


def test_replicas_need_a_pool_to_run_on() -> None:
    assert DumpLogitsRuntime(pool="gpu", replicas=4).replicas == 4
    with pytest.raises(ValidationError, match="replicas is 2, but pool names no work pool to run them on; set pool"):
        DumpLogitsRuntime(replicas=2)


def test_declaring_the_stage_loads_nothing_heavy() -> None:
    code = (
        "import sys, tasks.dump_logits.stage; "
        "print([name for name in ('torch', 'transformers', 'zarr', 'prefect', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert STAGE.worker == "tasks.dump_logits.worker"
