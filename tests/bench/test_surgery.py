"""The measures of the surgery bench see what they are there for, on the miniatures and on made-up files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tasks.modeling.document_start import start_token
from tasks.modeling.model_files import load_causal_lm
from tasks.modeling.tokenizer_files import PROBE_TEXTS, load_tokenizer
from tasks.models.stage import MINIATURES
from tests.bench.rows_surgery import KINDS
from tests.bench.surgery_bad_pairs import is_refused
from tests.bench.surgery_plan import num_differing, num_unexplained, plan_of, recounted
from tests.bench.surgery_round_trip import values_changed
from tests.bench.swap_loaders import differing_texts
from tests.bench.swap_recount import read_tokenizer_json
from tests.bench.swap_sums import Sum, right_answers, sums
from tests.bench.swap_texts import MEASURED_BYTES, measured_texts, training_file

STUDENT, DONOR = MINIATURES / "qwen-student", MINIATURES / "llama-teacher"
MAP = {
    "<|begin_of_text|>": "<|endoftext|>",
    "<|end_of_text|>": "<|endoftext|>",
    "<|start_header_id|>": "<|im_start|>",
    "<|end_header_id|>": "\n",
    "<|eot_id|>": "<|im_end|>",
    "<|finetune_right_pad_id|>": "<|endoftext|>",
}
NO_LIMIT = 10**9


def test_a_recount_agrees_with_a_plan_and_sees_what_is_wrong_in_one() -> None:
    plan = plan_of(load_tokenizer(STUDENT), load_tokenizer(DONOR), MAP)
    own, other = (read_tokenizer_json(model / "tokenizer.json", NO_LIMIT) for model in (STUDENT, DONOR))
    counts = recounted(own, other, MAP)
    assert num_differing(plan, counts) == 0
    assert num_unexplained(plan, own, other, MAP) == 0
    assert counts["composed"]["digits"] == 10

    one_more = {part: {**by_kind} for part, by_kind in plan.counts.items()}
    one_more["shared"]["words"] += 1
    assert num_differing(replace(plan, counts=one_more), counts) == 1
    shifted = replace(plan, shared_student_ids_S=plan.shared_student_ids_S[::-1].copy())
    assert num_unexplained(shifted, own, other, MAP) > 100
    token, pieces = next((token, pieces) for token, pieces in plan.composed.items() if token in other.texts)
    assert num_unexplained(replace(plan, composed={**plan.composed, token: pieces[1:]}), own, other, MAP) == 1
    lost = {other_token: made_of for other_token, made_of in plan.composed.items() if other_token != token}
    assert num_unexplained(replace(plan, composed=lost), own, other, MAP) == 1
    assert num_unexplained(plan, own, other, {**MAP, "<|eot_id|>": "<|im_start|>"}) == 1


def test_a_changed_bit_and_a_lost_tensor_are_changed_values(tmp_path: Path) -> None:
    weights = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    other = {"a": weights["a"].clone()}
    other["a"][1, 2] = -0.0
    for name, tensors in (("one", weights), ("other", other)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    assert values_changed(tmp_path / "one", tmp_path / "one") == (0, 10)
    assert values_changed(tmp_path / "one", tmp_path / "other") == (1 + 4, 10)


def test_a_loader_that_asks_the_config_gives_other_ids(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copyfile(DONOR / name, tmp_path / name)
    shutil.copyfile(STUDENT / "config.json", tmp_path / "config.json")
    config = json.loads((DONOR / "tokenizer_config.json").read_text())
    # The mark that keeps AutoTokenizer from asking.
    config.pop("auto_map", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    expected = load_tokenizer(DONOR)
    assert differing_texts("PreTrainedTokenizerFast", tmp_path, expected, PROBE_TEXTS) == 0
    assert differing_texts("AutoTokenizer", tmp_path, expected, PROBE_TEXTS) > 0


def test_an_answer_is_right_if_greedy_decoding_writes_it() -> None:
    model, tokenizer = load_causal_lm(STUDENT, dtype=torch.float32), load_tokenizer(STUDENT)
    items, expected = [], []
    for item in sums()[::15]:
        prompt, answer = (tokenizer.encode(text, add_special_tokens=False) for text in (item.prompt, item.answer))
        ids_T = torch.tensor([[start_token(model, tokenizer), *prompt]])
        made_T = model.generate(  # type: ignore[operator]
            input_ids=ids_T, attention_mask=torch.ones_like(ids_T), max_new_tokens=4, do_sample=False, eos_token_id=None
        )
        written = made_T[0, ids_T.shape[1] :].tolist()
        items.append(item)
        expected.append(written[: len(answer)] == answer)
        said = str(tokenizer.decode(written))
        again = [tokenizer.encode(text, add_special_tokens=False) for text in (said, item.prompt + said)]
        if again == [written, prompt + written]:
            items.append(Sum(item.prompt, said))
            expected.append(True)
    assert set(expected) == {True, False}
    assert right_answers(model, tokenizer, items) == expected


def test_no_sum_is_asked_twice_or_solved_before() -> None:
    items = sums()
    assert len({item.prompt for item in items}) == len(items)
    for item in items:
        *solved, question = item.prompt.splitlines()
        assert question + item.answer.rstrip("\n") not in solved
        assert all(line.partition(" = ")[0] + " =" != question for line in solved)


def test_what_is_measured_is_not_trained_on() -> None:
    trained = {json.loads(line)["text"] for line in training_file(KINDS).read_text().splitlines()}
    for kind, texts in measured_texts().items():
        assert sum(len(text.text.encode()) for text in texts) >= MEASURED_BYTES, kind
        assert not trained & {text.text for text in texts}, kind


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (None, False),
        ("KeyError: 'embed' of 3 tokens; asks for 64\n", False),
        ("a and b share 3 tokens, and recipe.k asks for 64", False),
        ("recipe.special_tokens is missing; set it", False),
        ("a and b share 3 tokens, and recipe.k asks for 64; lower k", True),
    ],
)
def test_a_refusal_names_what_is_wrong_and_what_to_do(said: str | None, expected: bool) -> None:
    assert is_refused(said, "asks for 64") is expected
