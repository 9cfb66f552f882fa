"""Tiny chat models of one vocabulary, to be merged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from tasks.modeling.model_files import save_causal_lm
from tasks.modeling.tokenizer_files import save_tokenizer

MakeModel = Callable[..., Path]
NUM_LAYERS = 4


def _tokenizer(digits: int, eos: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(rf" ?\p{{L}}+|\p{{N}}{{1,{digits}}}| ?[^\s\p{{L}}\p{{N}}]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        ["the river rose 123 456"], trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)  # type: ignore[no-untyped-call]
    tokenizer.add_tokens(["<|endoftext|>", "<|im_end|>"], special_tokens=True)
    tokenizer.eos_token = eos
    tokenizer.chat_template = f"{{% for m in messages %}}{{{{ m.content }}}}{eos}{{% endfor %}}"
    return tokenizer


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """make_model(name, seed, …) writes a Qwen2 of 4 layers in bfloat16; other words are fields of its config."""

    def make(
        name: str,
        seed: int,
        *,
        rows: int = 288,
        digits: int = 1,
        eos: str = "<|im_end|>",
        tied: bool = True,
        **fields: Any,
    ) -> Path:
        torch.manual_seed(seed)
        tokenizer = _tokenizer(digits, eos)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                **{
                    "vocab_size": rows,
                    "hidden_size": 16,
                    "intermediate_size": 32,
                    "num_hidden_layers": NUM_LAYERS,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 1,
                    "tie_word_embeddings": tied,
                    "eos_token_id": tokenizer.eos_token_id,
                    **fields,
                }
            )
        )
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        save_causal_lm(model, tmp_path / name, dtype=torch.bfloat16)
        save_tokenizer(tokenizer, tmp_path / name)
        return tmp_path / name

    return make
