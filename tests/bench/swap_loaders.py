"""Texts that a tool which loads a model's tokenizer its own way encodes otherwise than expected."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

Loader = Callable[[Path], PreTrainedTokenizerBase]
_CHAT = (
    {"role": "user", "content": "What is 12345 + 678?"},
    {"role": "assistant", "content": "12345 + 678 = 13023"},
)


def _mergekit(directory: Path) -> PreTrainedTokenizerBase:
    from mergekit.common import ModelPath
    from mergekit.tokenizer.build import get_stripped_tokenizer

    tokenizer: PreTrainedTokenizerBase = get_stripped_tokenizer(ModelPath(path=str(directory)))
    return tokenizer


def _lm_eval(directory: Path) -> PreTrainedTokenizerBase:
    # 17 CPU-seconds of import.
    from lm_eval.models.huggingface import HFLM

    tokenizer: PreTrainedTokenizerBase = HFLM(pretrained=str(directory), device="cpu").tokenizer
    return tokenizer


LOADERS: dict[str, Loader] = {
    "AutoTokenizer": AutoTokenizer.from_pretrained,
    "PreTrainedTokenizerFast": PreTrainedTokenizerFast.from_pretrained,
    "mergekit": _mergekit,
    "lm-eval": _lm_eval,
}


def differing_texts(loader: str, directory: Path, expected: PreTrainedTokenizerFast, texts: Iterable[str]) -> int:
    """How many of `texts`, and of a chat as `expected` renders it, have other ids, with or without special tokens."""
    found = LOADERS[loader](directory)
    chat = [str(expected.apply_chat_template(list(_CHAT), tokenize=False))] if expected.chat_template else []
    return sum(
        any(
            found.encode(text, add_special_tokens=added) != expected.encode(text, add_special_tokens=added)
            for added in (False, True)
        )
        for text in (*texts, *chat)
    )
