"""The rule by which the fusion or the fine-tuned model goes on."""

from __future__ import annotations

from typing import Any

import numpy as np

from tasks.choose.measured import Measured
from tasks.choose.results import build_results
from tasks.choose.rule import Choice, choose
from tasks.modeling.item_bits import Bits

STOPS = (True,) * 8
MAX_TEXT_LOSS, MAX_STOPS_LOST = 0.02, 0.25


def measured(
    answers: float, right: int = 40, texts: float = 2.0, stopped: tuple[bool, ...] = STOPS, **fields: Any
) -> Measured:
    """A model that takes about so many bits for a byte of answers and texts, and answers the first `right` of 100."""

    def items(bits: float) -> tuple[Bits, ...]:
        noise = np.random.default_rng(round(bits * 1000)).normal(0, 0.01, 20)
        return tuple(Bits(document=f"{at}", bits=(bits + noise[at]) * 100, num_bytes=100) for at in range(20))

    exercises = tuple(at < right for at in range(100))
    return Measured(texts=items(texts), answers=items(answers), exercises=exercises, stopped=stopped, **fields)


def chosen(default: Measured, **others: Measured) -> Choice:
    return choose(build_results({"fused": default, **others}, "fused"), "fused", MAX_TEXT_LOSS, MAX_STOPS_LOST)


def test_what_gains_and_keeps_its_texts_goes_on() -> None:
    choice = chosen(measured(3.0), tuned=measured(2.0, 60, texts=2.03))
    assert choice.chosen == "tuned"
    assert choice.reason.startswith("tuned goes on: against fused -0.99")
    assert "+0.200 ± 0.040 of the exercises" in choice.reason
    # Either of the two is a gain.
    assert chosen(measured(3.0), tuned=measured(2.0)).chosen == "tuned"
    assert chosen(measured(3.0), tuned=measured(3.0, 60)).chosen == "tuned"


def test_without_a_gain_beyond_chance_the_default_stays() -> None:
    choice = chosen(measured(3.0), tuned=measured(3.0, 43))
    # 3 of 100 are 0.030 ± 0.017.
    assert choice.chosen == "fused"
    assert choice.reason.startswith("fused stays: tuned gains nothing beyond 2 standard errors")
    assert chosen(measured(3.0), tuned=measured(3.0)).chosen == "fused", "equal models"


def test_a_gain_is_not_bought_with_the_other_measure() -> None:
    choice = chosen(measured(3.0), tuned=measured(2.0, 20))
    assert choice.chosen == "fused"
    assert "is worse beyond 2 standard errors" in choice.reason
    assert chosen(measured(3.0), tuned=measured(3.5, 60)).chosen == "fused"


def test_texts_may_lose_what_is_stated_and_no_more() -> None:
    choice = chosen(measured(3.0), tuned=measured(2.0, 60, texts=2.1))
    assert choice.chosen == "fused"
    assert "bits per byte of texts" in choice.reason
    assert "where 2 % are allowed" in choice.reason


def test_a_chat_that_goes_on_for_ever_is_out() -> None:
    six = (True,) * 6 + (False,) * 2
    assert chosen(measured(3.0), tuned=measured(2.0, 60, stopped=six)).chosen == "tuned", "a quarter may be lost"
    five = (True,) * 5 + (False,) * 3
    choice = chosen(measured(3.0), tuned=measured(2.0, 60, stopped=five))
    assert choice.chosen == "fused"
    assert "no longer stops at 3 of the 8 prompts" in choice.reason
    never = chosen(measured(3.0, stopped=(False,) * 8), tuned=measured(3.5, 20, texts=2.5))
    assert never.chosen == "tuned"
    assert never.reason == "tuned goes on, since fused cannot be used: it stops at none of 8 prompts"


def test_what_cannot_be_used_does_not_go_on() -> None:
    broken = Measured(fault="it gives logits that are not finite")
    mute = measured(1.0, 90, fault="there is no chat template")
    assert chosen(measured(3.0), tuned=broken, other=mute).chosen == "fused"
    assert chosen(broken, tuned=measured(3.0)).chosen == "tuned"
    none = chosen(mute, tuned=broken)
    assert none.chosen == "fused"
    assert "no candidate can be used" in none.reason


def test_of_several_that_are_better_the_best_at_answers_goes_on() -> None:
    choice = chosen(measured(3.0), tuned=measured(2.5, 60), other=measured(2.0, 60))
    assert choice.chosen == "other"
    assert set(choice.verdicts) == {"tuned", "fused"}
    assert choice.reason.startswith("other goes on")


def test_without_exercises_the_answers_decide() -> None:
    models = {
        name: Measured.model_validate({**measured(bits).model_dump(), "exercises": ()})
        for name, bits in (("fused", 3.0), ("tuned", 2.0))
    }
    assert build_results(models, "fused")["models"]["tuned"]["exercises"] is None
    assert chosen(models["fused"], tuned=models["tuned"]).chosen == "tuned"


def test_cloze_items_are_a_gain_and_a_loss_like_exercises() -> None:
    def with_cloze(answers: float, right: int) -> Measured:
        documents = tuple(f"{at // 5}" for at in range(100))
        cloze = tuple(at * 7 % 100 < right for at in range(100))
        given = {**measured(answers).model_dump(), "exercises": (), "cloze": cloze, "cloze_documents": documents}
        return Measured.model_validate(given)

    assert chosen(with_cloze(3.0, 40), tuned=with_cloze(3.0, 70)).chosen == "tuned"
    choice = chosen(with_cloze(3.0, 70), tuned=with_cloze(2.0, 40))
    assert choice.chosen == "fused", "fewer bits for what the fine-tuning teaches do not buy what it made forget"
    assert "-0.300 ± 0.0" in choice.reason
    assert "of the cloze items" in choice.reason
    pair = build_results({"fused": with_cloze(3.0, 40), "tuned": with_cloze(3.0, 70)}, "fused")["minus_default"]
    assert pair["tuned"]["cloze"]["clusters"] == 20, "items of one text are not independent"
