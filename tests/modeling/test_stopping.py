"""Answers end where transformers' own generation would end them, and never in a row that only pads the vocabulary."""

from __future__ import annotations

from datetime import date

import pytest
import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from tasks.modeling.stop_prompts import PROMPTS
from tasks.modeling.stopping import compared_stops, end_tokens, stopped_prompts
from tasks.modeling.template_date import date_string
from tasks.modeling.tokenizer_files import real_vocab_size

NEW_TOKENS = 6


@pytest.fixture
def model(qwen_like: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """Random, with weights large enough that answers depend on the prompt."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=qwen_like.eos_token_id,
    )
    model = Qwen2ForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    return model


def _generated(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    """The greedy answer by transformers, one prompt at a time."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        tokenize=False,
        add_generation_prompt=True,
        date_string=date_string(date(2024, 7, 26)),
    )
    ids_BT = torch.tensor([tokenizer.encode(str(text), add_special_tokens=False)])
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        pad_token_id=0,
        suppress_tokens=list(range(real_vocab_size(tokenizer), 320)),
    )
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    answer: list[int] = model.generate(ids_BT, generation_config=config)[0, ids_BT.shape[1] :].tolist()  # type: ignore[operator]
    return answer


def test_prompts_stop_as_in_transformers_generation(
    model: Qwen2ForCausalLM, qwen_like: PreTrainedTokenizerFast
) -> None:
    answers = [_generated(model, qwen_like, prompt) for prompt in PROMPTS]
    # Two ends that some of the answers have, one of them not before the last token.
    rare = [token for answer in answers for token in answer if sum(token in other for other in answers) <= 3]
    ends = [rare[0], next(answer[-1] for answer in answers if answer[-1] not in answer[:-1])]
    expected = [any(token in ends for token in answer) for answer in answers]
    assert 0 < sum(expected) < len(PROMPTS), "nothing is tested where all stop or none does"
    model.generation_config.eos_token_id = ends
    assert end_tokens(model, qwen_like) == frozenset(ends)
    assert stopped_prompts(model, qwen_like, max_new_tokens=NEW_TOKENS) == expected
    shorter = [any(token in ends for token in answer[:3]) for answer in answers]
    assert shorter != expected
    assert stopped_prompts(model, qwen_like, max_new_tokens=3) == shorter


def test_padding_rows_are_never_chosen(model: Qwen2ForCausalLM, qwen_like: PreTrainedTokenizerFast) -> None:
    padding = [real_vocab_size(qwen_like), 319]
    with torch.no_grad():
        # Of a direction and its opposite one has the largest logit, whatever the hidden state.
        model.lm_head.weight[padding] = 1000 * torch.stack([torch.ones(16), -torch.ones(16)])
    model.generation_config.eos_token_id = padding
    assert stopped_prompts(model, qwen_like, max_new_tokens=3) == [False] * len(PROMPTS)


def test_end_tokens_are_looked_for_in_the_config_and_the_tokenizer_too(
    model: Qwen2ForCausalLM, qwen_like: PreTrainedTokenizerFast
) -> None:
    model.generation_config.eos_token_id = 7
    model.config.eos_token_id = [8, 9]
    assert end_tokens(model, qwen_like) == {7}
    model.generation_config.eos_token_id = None
    assert end_tokens(model, qwen_like) == {8, 9}
    model.config.eos_token_id = None
    assert end_tokens(model, qwen_like) == {qwen_like.eos_token_id}


def test_a_tokenizer_without_a_chat_template_cannot_be_asked(
    model: Qwen2ForCausalLM, llama_like: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_like, "chat_template", None)
    assert stopped_prompts(model, llama_like) == []


@pytest.mark.parametrize(
    ("before", "after", "share", "reason"),
    [
        ([True, True, False, True], [False, True, True, True], 1 / 3, None),
        ([True, False], [True, True], 0.0, None),
        ([False, False], [True, False], None, "stopped at none"),
        ([], [True], None, "model before has no chat template"),
        ([], [], None, "model before has no chat template"),
        ([True, False], [], 1.0, None),
        ([False, False], [], 1.0, None),
    ],
)
def test_lost_are_the_stops_of_before(
    before: list[bool], after: list[bool], share: float | None, reason: str | None
) -> None:
    stops = compared_stops(before, after)
    assert stops["lost_share"] == (share if share is None else pytest.approx(share))
    assert (stops["before"], stops["after"]) == (sum(before), sum(after))
    assert stops["not_judged"] is None if reason is None else reason in stops["not_judged"]
    assert stops["template_lost"] is (before != [] and after == [])
