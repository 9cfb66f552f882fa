"""A transplanted model ends its answers: which tokens are ends, what they may be made of, and what is told of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.modeling.tokenizer_files import load_tokenizer
from tasks.surgeon.ends import listed_ends, token_ids
from tasks.surgeon.plan import plan_transplant
from tasks.surgeon.stage import TransplantRecipe
from tests.surgeon.test_surgery import COMPOSED, MAP, MakeModel, RunStage, fetched

BACK = {"<|im_end|>": "<|eot_id|>", "<|endoftext|>": "<|eot_id|>", "<|im_start|>": "<|start_header_id|>"}
Plan = Callable[..., dict[str, Any]]


@pytest.fixture
def donor(make_donor: MakeModel) -> PreTrainedTokenizerFast:
    tokenizer = load_tokenizer(make_donor())
    tokenizer.add_tokens(["<|end_of_text|>", "<|eom_id|>"], special_tokens=True)
    return tokenizer


@pytest.fixture
def planned(make_student: MakeModel, donor: PreTrainedTokenizerFast) -> Plan:
    """planned(listed=(), **more of the map) is the record of a transplant."""
    student = load_tokenizer(make_student())

    def plan(listed: tuple[str, ...] = (), **more: str | None) -> dict[str, Any]:
        special_tokens = {name: token for name, token in {**MAP, **more}.items() if token is not None}
        recipe = TransplantRecipe.model_validate({**COMPOSED, "special_tokens": special_tokens})
        ids = donor.convert_tokens_to_ids(list(listed))
        return plan_transplant(student, donor, recipe, 320, ids).record()

    return plan


def test_every_end_that_is_listed_must_be_in_the_map(planned: Plan) -> None:
    listed = ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>")
    with pytest.raises(BadInputError, match=r"<\|end_of_text\|>, <\|eom_id\|> of the donor take") as refused:
        planned(listed)
    proposed = json.loads(str(refused.value).partition("consider ")[2])
    assert proposed == {"<|end_of_text|>": "<|endoftext|>", "<|eom_id|>": "<|im_end|>"}
    assert len(planned(listed, **proposed)["mapped"]) == len(MAP) + 2
    assert planned(), "what nothing lists may be without a counterpart"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"<|eot_id|>": "\n"}, r"maps <\|eot_id\|>, which ends an answer, to '\\n', which is text"),
        ({"<|end_of_text|>": "a"}, r"maps <\|end_of_text\|>, which ends an answer, to 'a', which is text"),
        ({"<|eot_id|>": "<|im_start|>", "<|start_header_id|>": "<|endoftext|>"}, "which begins a turn; name the"),
        ({"<|eot_id|>": "<|endoftext|>", "<|start_header_id|>": "<|endoftext|>"}, "the begin of a turn from its end"),
        ({"<|end_of_text|>": "<|endoftext|>", "<|start_header_id|>": "<|endoftext|>"}, "the end of an answer from"),
    ],
)
def test_an_end_takes_no_text_and_nothing_that_begins_a_turn(planned: Plan, more: dict[str, str], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        planned(("<|end_of_text|>",), **{"<|end_of_text|>": "<|im_end|>", **more})


def test_begin_and_end_by_unknown_names_may_not_be_one(planned: Plan, donor: PreTrainedTokenizerFast) -> None:
    donor.add_tokens(["<|speak|>", "<|hush|>"], special_tokens=True)
    donor.chat_template = "{{ bos_token }}<|speak|>{{ messages[0].content }}<|hush|>"
    donor.eos_token = "<|hush|>"
    with pytest.raises(BadInputError, match=r"both <\|speak\|> and <\|hush\|> to '<\|im_end\|>'"):
        planned(**{"<|eot_id|>": None, "<|speak|>": "<|im_end|>", "<|hush|>": "<|im_end|>"})
    assert planned(**{"<|eot_id|>": None, "<|speak|>": "<|im_start|>", "<|hush|>": "<|im_end|>"})


def test_an_end_that_greedy_decoding_would_not_take_is_told(planned: Plan) -> None:
    listed = ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>")
    record = planned(listed, **{"<|end_of_text|>": "<|endoftext|>", "<|eom_id|>": "<|im_end|>"})
    # <|eot_id|> has the row of <|im_end|> too, and is itself an end.
    assert record["shadowed_ends"] == [{"end": "<|end_of_text|>", "taken": "<|begin_of_text|>"}]
    assert planned(listed, **{"<|end_of_text|>": "<|im_end|>", "<|eom_id|>": "<|im_end|>"})["shadowed_ends"] == []


def test_a_token_that_takes_the_row_of_text_is_told(planned: Plan) -> None:
    assert planned()["rows_of_text"] == [{"token": "<|end_header_id|>", "text": "\n"}]
    assert planned(**{"<|end_header_id|>": "<|im_start|>"})["rows_of_text"] == []


def test_begin_and_padding_come_from_the_configs_where_the_tokenizer_has_none(
    tmp_path: Path, run_stage: RunStage, make_student: MakeModel, make_donor: MakeModel
) -> None:
    """Qwen2.5's tokenizer has no BOS, and its configs name <|endoftext|>."""
    student, donor = make_donor(), make_student()
    theirs = load_tokenizer(donor)
    assert theirs.bos_token_id is None
    end, text_end = theirs.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    ids = {"bos_token_id": text_end, "eos_token_id": [end, text_end], "pad_token_id": text_end}
    (donor / "generation_config.json").write_text(json.dumps(ids))
    recipe = {**COMPOSED, "special_tokens": BACK}
    result = fetched(run_stage("surgeon", recipe, {"student": student, "donor": donor}), tmp_path / "result")
    for name in ("config.json", "generation_config.json"):
        written = json.loads((result / name).read_text())
        assert {field: written[field] for field in ids} == ids, name

    assert listed_ends(donor) == (end, text_end)
    (donor / "generation_config.json").unlink()
    (donor / "config.json").write_text(json.dumps({"eos_token_id": end}))
    assert listed_ends(donor) == (end,), "as the stage models completes it"
    theirs.pad_token = None
    (donor / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    (donor / "config.json").write_text(json.dumps({"bos_token_id": text_end, "pad_token_id": -1}))
    assert token_ids(donor, theirs) == {"bos_token_id": text_end, "eos_token_id": end, "pad_token_id": end}
