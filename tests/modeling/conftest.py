"""Two tiny byte-level tokenizers that differ as Llama's and Qwen's do, and a tiny Qwen2."""

from __future__ import annotations

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = [
    "the river rose and the children were told that they would stay at home, and so they did",
    "def f(x):\n    return x + 1\n",
    "123 456 789 100 200 12 34 56 7 8 9 " * 4,
]


def _tokenizer(digits: int, bos: str | None, eos: str, others: list[str], template: str) -> PreTrainedTokenizerFast:
    words = (
        rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,{digits}}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(TEXT, trainer)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, eos_token=eos, extra_special_tokens=others
    )
    if bos is not None:
        tokenizer.add_special_tokens({"bos_token": bos})
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
        )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def llama_like() -> PreTrainedTokenizerFast:
    """Three digits to a token at most, a BOS before every text."""
    return _tokenizer(
        3,
        "<|begin_of_text|>",
        "<|eot_id|>",
        ["<|start_header_id|>", "<|end_header_id|>"],
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>{{ m.content }}"
        "<|eot_id|>{% endfor %}",
    )


@pytest.fixture(scope="session")
def qwen_like() -> PreTrainedTokenizerFast:
    """One digit to a token, no BOS."""
    return _tokenizer(
        1,
        None,
        "<|im_end|>",
        ["<|endoftext|>", "<|im_start|>"],
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    )
