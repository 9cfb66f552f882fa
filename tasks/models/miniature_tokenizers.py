"""The two tokenizers of the miniatures: byte-level BPEs of about 1,000 tokens that differ as Llama's and Qwen's do.

The Llama one groups up to three digits, starts every text with a BOS and has a chat template that prints a date. The
Qwen one splits numbers into digits, has no BOS, speaks ChatML and pads its embedding rows to a multiple of 128.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tasks.models.chat_templates import CHATML, LLAMA_3

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_PUNCTUATION_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA_WORDS = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_PUNCTUATION_AND_SPACE}"
_QWEN_WORDS = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_PUNCTUATION_AND_SPACE}"


@dataclass(frozen=True)
class TokenizerFamily:
    """How a family writes text and conversations."""

    words: str
    num_tokens: int
    """Size of the vocabulary, special tokens included."""
    num_rows: int
    """Embedding rows; those beyond `num_tokens` are padding."""
    specials: tuple[str, ...]
    bos: str | None
    end_of_turn: str
    end_of_text: str
    pad: str
    template: str
    normalise: bool


LLAMA = TokenizerFamily(
    words=_LLAMA_WORDS,
    num_tokens=1024,
    num_rows=1024,
    specials=(
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|finetune_right_pad_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ),
    bos="<|begin_of_text|>",
    end_of_turn="<|eot_id|>",
    end_of_text="<|end_of_text|>",
    pad="<|finetune_right_pad_id|>",
    template=LLAMA_3,
    normalise=False,
)
QWEN = TokenizerFamily(
    words=_QWEN_WORDS,
    num_tokens=1003,
    num_rows=1024,
    specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    bos=None,
    end_of_turn="<|im_end|>",
    end_of_text="<|endoftext|>",
    pad="<|endoftext|>",
    template=CHATML,
    normalise=True,
)


def train_tokenizer(family: TokenizerFamily, texts: Iterable[str]) -> Tokenizer:
    """Learns the merges from `texts`. Special tokens take the ids after the learned ones, as in both families."""
    tokenizer = Tokenizer(models.BPE())
    if family.normalise:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(family.words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=family.num_tokens - len(family.specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(family.specials))
    if family.bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A",
            pair=f"{family.bos} $A {family.bos} $B",
            special_tokens=[(family.bos, tokenizer.token_to_id(family.bos))],
        )
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if tokenizer.get_vocab_size() != family.num_tokens:
        raise AssertionError(f"{tokenizer.get_vocab_size()} tokens were learned, not {family.num_tokens}")
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, family: TokenizerFamily, directory: Path, max_length: int) -> None:
    """tokenizer.json, tokenizer_config.json, chat_template.jinja and generation_config.json.

    The config names the generic class: under it the file alone decides the ids, whatever the model's type.
    """
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "add_bos_token": family.bos is not None,
        "bos_token": family.bos,
        "clean_up_tokenization_spaces": False,
        "eos_token": family.end_of_turn,
        "model_max_length": max_length,
        "pad_token": family.pad,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (directory / "chat_template.jinja").write_text(family.template)
    generation = {
        "bos_token_id": tokenizer.token_to_id(family.bos) if family.bos else None,
        "do_sample": False,
        "eos_token_id": [tokenizer.token_to_id(family.end_of_turn), tokenizer.token_to_id(family.end_of_text)],
        "pad_token_id": tokenizer.token_to_id(family.pad),
    }
    generation = {name: value for name, value in generation.items() if value is not None}
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
