"""Recipes are checked when a profile is read, and gates judge each kind of text apart."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tasks.modeling.bits_per_byte import TEXTS
from tasks.surgeon.stage import KINDS, STAGE, RevertRecipe, SurgeonConfig, SurgeonGates, TransplantRecipe


def _transplant(**fields: object) -> dict[str, object]:
    return {"mode": "transplant", "special_tokens": {}, **fields}


def test_mode_chooses_the_recipe() -> None:
    assert isinstance(SurgeonConfig.model_validate({"recipe": _transplant()}).recipe, TransplantRecipe)
    assert isinstance(SurgeonConfig.model_validate({"recipe": {"mode": "revert"}}).recipe, RevertRecipe)
    with pytest.raises(ValidationError, match="k"):
        SurgeonConfig.model_validate({"recipe": {"mode": "revert", "k": 8}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 0}, "greater than or equal to 1"),
        ({"method": "stb"}, "omp"),
        ({"rows": 100, "pad_rows_to_multiple_of": 64}, "not a multiple"),
        ({"method": "mean", "new_row_scale": 0.5}, "method mean"),
    ],
)
def test_impossible_recipes_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SurgeonConfig.model_validate({"recipe": _transplant(**fields)})


def test_gates_judge_each_kind_and_fail_without_a_value() -> None:
    assert tuple(TEXTS) == KINDS
    gates = SurgeonGates(max_ratio_prose=1.5, max_ratio_code=None, max_ratio_digits=2, max_ratio_non_latin=2)
    ratios = {"prose": 1.2, "code": 9.0, "digits": 2.5}
    verdicts = {result.gate: result.passed for result in STAGE.judge({"bits_per_byte_ratio": ratios}, gates)}
    assert verdicts == {"max_ratio_prose": True, "max_ratio_digits": False, "max_ratio_non_latin": False}
