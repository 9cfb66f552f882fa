"""Strict reading of what a model wrote: either exactly what was asked for, or a reason why it is not.

Nothing is repaired. A reply that cannot be read is counted under its reason and never becomes a row.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal, get_args

from tasks.evolve.calls import Completion
from tasks.modeling.answer_signs import is_failed_answer, is_refusal, looks_like_endpoint_error

Reason = Literal["unparsed", "unchanged", "refused", "truncated", "errored", "failed"]
REASONS: tuple[Reason, ...] = get_args(Reason)


@dataclass(frozen=True)
class Rejection:
    """Why a reply is not used."""

    reason: Reason


_REASONING = re.compile(r"<think>.*?</think>", re.DOTALL)
_OPENED, _CLOSED = "<think>", "</think>"


def whole_text(completion: Completion) -> str | Rejection:
    """The text of a finished reply without its reasoning, or why there is none."""
    if completion.finish == "error":
        return Rejection("errored")
    if completion.finish == "content_filter":
        return Rejection("refused")
    if completion.finish == "length":
        return Rejection("truncated")
    text = _without_reasoning(completion.text)
    return text or Rejection("unparsed")


def _without_reasoning(text: str) -> str:
    """What follows the reasoning; nothing where it cannot be told where that ends.

    A template that puts <think> into the prompt leaves a reply with the closing tag alone: all before it is reasoning.
    """
    text = _REASONING.sub("", text)
    before, closed, after = text.partition(_CLOSED)
    text = after if closed else before
    return "" if _OPENED in text or _CLOSED in text else text.strip()


def tagged(completion: Completion, tag: str) -> str | Rejection:
    """The content of the one <tag>…</tag> in a reply; several, none, or an empty one are all unparsed."""
    text = whole_text(completion)
    if isinstance(text, Rejection):
        return text
    before, opened, rest = text.partition(f"<{tag}>")
    content, closed, after = rest.partition(f"</{tag}>")
    outside = before + after
    if not opened or not closed or f"<{tag}>" in content + outside or f"</{tag}>" in outside:
        return Rejection("refused" if is_refusal(text) else "unparsed")
    return content.strip() or Rejection("unparsed")


def evolved_instruction(completion: Completion, tag: str, earlier: Sequence[str], limit: float) -> str | Rejection:
    """The rewritten instruction in a reply, if it is one and differs from every earlier form."""
    text = tagged(completion, tag)
    if isinstance(text, Rejection):
        return text
    if looks_like_endpoint_error(text):
        return Rejection("errored")
    if is_refusal(text):
        return Rejection("refused")
    if any(is_unchanged(text, other, limit) for other in earlier):
        return Rejection("unchanged")
    return text


def answer(completion: Completion) -> str | Rejection:
    """The answer to an instruction, as it will be trained on."""
    text = whole_text(completion)
    if isinstance(text, Rejection):
        return text
    if looks_like_endpoint_error(text):
        return Rejection("errored")
    if is_refusal(text):
        return Rejection("refused")
    return Rejection("failed") if is_failed_answer(text) else text


def is_unchanged(text: str, other: str, limit: float) -> bool:
    """Equal but for case, spacing and surrounding punctuation, or with a matching ratio of at least `limit`."""
    if _normal(text) == _normal(other):
        return True
    matcher = SequenceMatcher(None, text, other, autojunk=False)
    # The exact ratio is quadratic; the two bounds above it settle nearly every real rewriting.
    return all(ratio() >= limit for ratio in (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio))


def _normal(text: str) -> str:
    # Punctuation inside stays: "2 + 3" and "2 - 3" are two instructions.
    return " ".join(text.casefold().split()).strip(string.punctuation + " ")
