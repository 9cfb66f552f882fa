"""Recipes are checked when a profile is read, and gates judge each kind of text apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.modeling.bits_per_byte import TEXTS
from tasks.modeling.stopping import compared_stops
from tasks.runtime.text_gates import TEXT_KINDS
from tasks.surgeon.architecture import check_plain_head
from tasks.surgeon.plan import plan_transplant
from tasks.surgeon.result import compared
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
        ({"rows": 128, "pad_rows_to_multiple_of": 32}, "with rows there is nothing for it to decide"),
        ({"method": "mean", "new_row_scale": 0.5}, "method mean"),
        ({"method": "composed", "k": 8}, "k is given, but method composed does not read it.*omp_anchored or omp"),
        ({"method": "composed", "num_anchors": 100}, "num_anchors is given"),
        ({"method": "composed", "composed_kinds": ["digits"]}, "composed_kinds is given"),
        ({"method": "composed", "weight_scheme": "barycentric"}, "weight_scheme is given"),
        ({"method": "omp", "cosine_similarity": True}, "set method to common_interpolation"),
        ({"method": "zero", "k": 8}, "k is given, but method zero"),
        ({"method": "omp", "composition": {"scale": 0.5}}, "composition is given, but method omp"),
    ],
)
def test_impossible_recipes_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SurgeonConfig.model_validate({"recipe": _transplant(**fields)})


def test_a_head_with_a_bias_is_refused() -> None:
    size: dict[str, Any] = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.device("meta"):
        biased = PhiForCausalLM(PhiConfig(**size, intermediate_size=8))
        plain = LlamaForCausalLM(LlamaConfig(**size, intermediate_size=8))
    with pytest.raises(BadInputError, match=r"the head of the student model \(phi\) has a bias"):
        check_plain_head(biased, "student")
    check_plain_head(plain, "student")


def test_a_setting_at_its_default_says_nothing() -> None:
    """So that what a profile resolves to is a profile."""
    for method in ("composed", "omp", "omp_anchored", "common_interpolation", "mean", "zero"):
        recipe = TransplantRecipe.model_validate(_transplant(method=method))
        assert TransplantRecipe.model_validate(recipe.model_dump()) == recipe
    assert TransplantRecipe.model_validate(_transplant(rows=100, pad_rows_to_multiple_of=64)).rows == 100
    kinds = _transplant(method="mean", composed_kinds=["digits"], composition={"scale": 0.5})
    assert TransplantRecipe.model_validate(kinds).composition.scale == 0.5


def test_another_strategy_keeps_what_it_reads() -> None:
    now = RevertRecipe(mode="revert", strategy="delta_transplant", k=8, special_tokens={"a": "b"})
    assert now.by("back_transplant", {"a": "b"}) == now.model_copy(update={"strategy": "back_transplant"})
    assert now.by("shared_trained", {"a": "c"}) == RevertRecipe(
        mode="revert", strategy="shared_trained", special_tokens={"a": "c"}
    )
    assert now.by("original_rows", {}) == RevertRecipe(mode="revert")


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
    delta = {"strategy": "delta_transplant"}
    for fields, message in (
        ({"strategy": "nothing"}, "original_rows"),
        ({**delta, "k": 64, "num_anchors": 32}, "more than"),
        ({"special_tokens": {"a": "b"}}, "special_tokens is given, but strategy original_rows does not read it"),
        ({"strategy": "shared_trained", "k": 8}, "set strategy to delta_transplant or back_transplant"),
    ):
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


def test_a_kind_without_finite_logits_fails_and_the_verdict_says_why() -> None:
    nothing: dict[str, float | None] = dict.fromkeys(TEXT_KINDS)
    ratios = compared(dict.fromkeys(TEXT_KINDS, 1.0), {**nothing, "prose": 1.1})
    verdicts = STAGE.judge({**ratios, "stops": compared_stops([], [])}, SurgeonGates())
    assert {result.gate: result.passed for result in verdicts} == {
        "max_ratio_prose": True,
        "max_ratio_code": False,
        "max_ratio_digits": False,
        "max_ratio_non_latin": False,
        "max_stops_lost": True,
    }
    assert [result.gate for result in verdicts if "logits are not finite" in result.meaning] == [
        "max_ratio_code", "max_ratio_digits", "max_ratio_non_latin"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "passed", "meaning"),
    [
        ([True] * 8, [True] * 6 + [False] * 2, True, "share of the chat prompts"),
        ([True] * 8, [True] * 5 + [False] * 3, False, "share of the chat prompts"),
        ([False] * 8, [False] * 8, True, "not judged: the model before stopped at none"),
        ([], [], True, "not judged: the model before has no chat template"),
        ([True] * 8, [], False, "the model after has no chat template, which the one before had"),
        ([False] * 8, [], False, "the model after has no chat template, which the one before had"),
    ],
)
def test_a_model_that_stopped_must_stop(before: list[bool], after: list[bool], passed: bool, meaning: str) -> None:
    gates = SurgeonGates(max_ratio_prose=None, max_ratio_code=None, max_ratio_digits=None, max_ratio_non_latin=None)
    [verdict] = STAGE.judge({"stops": compared_stops(before, after)}, gates)
    assert (verdict.gate, verdict.passed) == ("max_stops_lost", passed)
    assert meaning in verdict.meaning
    assert STAGE.judge({}, gates.model_copy(update={"max_stops_lost": None})) == []
