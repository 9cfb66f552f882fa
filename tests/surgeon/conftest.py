"""A student and a donor of two families, tiny: other tokenizers, other widths, other numbers of rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tasks.modeling.model_files import save_causal_lm
from tasks.modeling.tokenizer_files import save_tokenizer

MakeModel = Callable[..., Path]
TEXT = "the river rose and the children were told that they would stay at home, def f(x):\n    return x + 1\n"
SIZES: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}


def _tokenizer(digits: int, text: str, special_tokens: dict[str, Any]) -> PreTrainedTokenizerFast:
    words = rf" ?\p{{L}}+|\p{{N}}{{1,{digits}}}| ?[^\s\p{{L}}\p{{N}}]+|\s+"
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=285, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special_tokens)  # type: ignore[no-untyped-call]


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, directory: Path, dtype: torch.dtype) -> Path:
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.config, name, getattr(tokenizer, name))
        setattr(model.generation_config, name, getattr(tokenizer, name))
    # Random weights of the size that trained ones have, so that a lost row would be seen.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_causal_lm(model, directory, dtype=dtype)
    save_tokenizer(tokenizer, directory)
    return directory


@pytest.fixture
def make_student(tmp_path: Path) -> MakeModel:
    """make_student(tied=False, dtype=…) writes a Qwen2 with Qwen-like tokens and 320 rows."""

    def make(*, tied: bool = False, dtype: torch.dtype = torch.float32) -> Path:
        tokenizer = _tokenizer(
            1,
            TEXT + "river " * 5,
            {
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
                "extra_special_tokens": ["<|im_start|>"],
            },
        )
        tokenizer.chat_template = (
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
        )
        torch.manual_seed(1)
        config = Qwen2Config(vocab_size=320, hidden_size=16, intermediate_size=32, tie_word_embeddings=tied, **SIZES)
        return _write(Qwen2ForCausalLM(config), tokenizer, tmp_path / f"student-{tied}", dtype)

    return make


@pytest.fixture
def make_donor(tmp_path: Path) -> MakeModel:
    """make_donor(tied=False, dtype=…) writes a Llama with three-digit tokens, a BOS and no padding rows."""

    def make(*, tied: bool = False, dtype: torch.dtype = torch.float32) -> Path:
        tokenizer = _tokenizer(
            3,
            TEXT + "123 456 789 100 200 " * 6 + "éèé éèé",
            {
                "bos_token": "<|begin_of_text|>",
                "eos_token": "<|eot_id|>",
                "extra_special_tokens": ["<|start_header_id|>", "<|end_header_id|>", "<|reserved|>"],
            },
        )
        tokenizer.chat_template = (
            "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>{{ m.content }}"
            "<|eot_id|>{% endfor %}"
        )
        torch.manual_seed(2)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=24, intermediate_size=32, tie_word_embeddings=tied, **SIZES
        )
        return _write(LlamaForCausalLM(config), tokenizer, tmp_path / f"donor-{tied}", dtype)

    return make
