"""Cloze items as token ids, each choice after the context: what the harness asks of them in an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from tasks.modeling.predicted import Asked


def asked_choices(tokenizer: PreTrainedTokenizerFast, start: int, item: Mapping[str, Any]) -> list[Asked]:
    """The choices of one of `cloze_items`, in their order, after `start`, the token that documents begin with.

    As the harness does, the context is encoded alone and with the choice, whose tokens are those beyond it.
    """

    def ids(text: str) -> list[int]:
        return [start, *tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)]

    before = len(ids(item["context"]))
    wholes = [ids(f"{item['context']} {word}") for word in item["choices"]]
    return [Asked(whole, range(before, len(whole))) for whole in wholes]


def is_right(item: Mapping[str, Any], bits: Sequence[float]) -> bool:
    """Whether the choice of the fewest bits is the answer."""
    return min(range(len(bits)), key=bits.__getitem__) == item["answer"]
