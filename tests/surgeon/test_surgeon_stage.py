"""Recipes are checked when a profile is read, and gates judge each kind of text apart."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.modeling.bits_per_byte import TEXTS
from tasks.modeling.stopping import compared_stops
from tasks.runtime.text_gates import TEXT_KINDS
from tasks.surgeon.plan import plan_transplant
from tasks.surgeon.stage import STAGE, RevertRecipe, SurgeonConfig, SurgeonGates, TransplantRecipe


def _transplant(**fields: object) -> dict[str, object]:
    return {"mode": "transplant", "special_tokens": {}, **fields}


def test_mode_chooses_the_recipe() -> None:
    assert isinstance(SurgeonConfig.model_validate({"recipe": _transplant()}).recipe, TransplantRecipe)
    assert isinstance(SurgeonConfig.model_validate({"recipe": {"mode": "revert"}}).recipe, RevertRecipe)
    with pytest.raises(ValidationError, match="method"):
        SurgeonConfig.model_validate({"recipe": {"mode": "revert", "method": "omp"}})


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


def test_vocabularies_without_a_common_token_are_refused() -> None:
    pair = []
    for name in ("\u0120a", "\u0120b"):
        backend = Tokenizer(models.BPE(vocab={name: 0}, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(False)
        pair.append(PreTrainedTokenizerFast(tokenizer_object=backend))  # type: ignore[no-untyped-call]
    for method in ("composed", "omp_anchored"):
        recipe = TransplantRecipe.model_validate(_transplant(method=method))
        with pytest.raises(BadInputError, match="share no tokens"):
            plan_transplant(pair[0], pair[1], recipe, rows=64)


def test_impossible_reversions_are_refused() -> None:
    for fields, message in (({"strategy": "nothing"}, "original_rows"), ({"k": 64, "num_anchors": 32}, "more than")):
        with pytest.raises(ValidationError, match=message):
            SurgeonConfig.model_validate({"recipe": {"mode": "revert", **fields}})


def test_gates_judge_each_kind_and_fail_without_a_value() -> None:
    assert tuple(TEXTS) == TEXT_KINDS
    gates = SurgeonGates(max_ratio_prose=1.5, max_ratio_code=None, max_ratio_digits=2, max_ratio_non_latin=2)
    ratios = {"prose": 1.2, "code": 9.0, "digits": 2.5}
    verdicts = {result.gate: result.passed for result in STAGE.judge({"bits_per_byte_ratio": ratios}, gates)}
    assert verdicts == {
        "max_ratio_prose": True,
        "max_ratio_digits": False,
        "max_ratio_non_latin": False,
        "max_stops_lost": False,
    }


@pytest.mark.parametrize(
    ("before", "after", "passed", "meaning"),
    [
        ([True] * 8, [True] * 6 + [False] * 2, True, "share of the chat prompts"),
        ([True] * 8, [True] * 5 + [False] * 3, False, "share of the chat prompts"),
        ([False] * 8, [False] * 8, True, "not judged: the model before stopped at none"),
        ([], [], True, "not judged: the model before has no chat template"),
    ],
)
def test_a_model_that_stopped_must_stop(before: list[bool], after: list[bool], passed: bool, meaning: str) -> None:
    gates = SurgeonGates(max_ratio_prose=None, max_ratio_code=None, max_ratio_digits=None, max_ratio_non_latin=None)
    [verdict] = STAGE.judge({"stops": compared_stops(before, after)}, gates)
    assert (verdict.gate, verdict.passed) == ("max_stops_lost", passed)
    assert meaning in verdict.meaning
    assert STAGE.judge({}, gates.model_copy(update={"max_stops_lost": None})) == []
