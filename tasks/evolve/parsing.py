"""Strict reading of what a model wrote: either exactly what was asked for, or a reason why it is not.

Nothing is repaired. A reply that cannot be read is counted under its reason and never becomes a row.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

from tasks.evolve.calls import Completion

Reason = Literal["unparsed", "unchanged", "refused", "truncated", "errored", "failed"]
REASONS: tuple[Reason, ...] = ("unparsed", "unchanged", "refused", "truncated", "errored", "failed")
_REFUSAL_CHARS = 200
_ERROR_CHARS = 600
"""Gateways' messages are short; a long text that begins like one is more likely an answer about errors."""


@dataclass(frozen=True)
class Rejection:
    """Why a reply is not used."""

    reason: Reason


_REASONING = re.compile(r"<think>.*?</think>", re.DOTALL)

_REFUSAL = re.compile(
    # Words that lead up to it, then "I cannot help" and its like; an apology alone may be a letter that was asked for.
    r"^\W*((no|well|so|but|and|however|unfortunately|sorry|i('m| am)( very| so| really)? sorry|i apologi[sz]e"
    r"|as an ai( language)?( model| assistant)?)\b\W*)*"
    r"(i (can('|no)?t|won't|will not|must decline|refuse)\b( \w+)?( to)?"
    r" (help|assist|provide|comply|fulfill?|create|write|generate|answer|rewrite|do|support|engage|produce|discuss)"
    r"|i('m| am) (unable|not able|not allowed) to)\b",
    re.IGNORECASE,
)

_ERROR_PHRASES = (
    r"internal server error|bad gateway|service (is )?(temporarily )?unavailable|gateway time-?out|too many requests"
    r"|rate[ -]?limit(ed| exceeded| reached)?|connection (refused|reset|error|aborted|timed out)"
    r"|(request|read|upstream) timed?[ -]?out|upstream (connect )?error|overloaded|quota exceeded|insufficient_quota"
    r"|context length exceeded|(invalid|incorrect) api key|unauthorized|cuda out of memory"
)
# "Bad gateway. Please retry" is an error; "Bad gateway is the status 502 of a proxy" is an answer about one.
_ENDS = r"(?=\s*($|[.,;:!\n]|please\b|for\b|try\b|by\b|or\b|error\b))"
_ERROR_TEXT = re.compile(
    # A JSON body that begins with the error; a gateway's page; "503 Service Unavailable", "API error: rate limit …";
    # a model that is not up; the name of a client's exception; "Error code: 429 …".
    r"^\s*\{\s*\"(error|detail|status_?code)\""
    rf"|^\s*<(!doctype html|html)\b.*<title>[^<]*(\b[45]\d\d\b|{_ERROR_PHRASES})"
    rf"|^\W*((api|server|upstream|openai|http|error|exception|code|[45]\d\d)\b\W*)*"
    rf"((the|an|your|this|our|api|model|server|servers|engine|client|is|are|was|currently)\b\W*)*"
    rf"({_ERROR_PHRASES}){_ENDS}"
    r"|^\W*(error\W+)?(the )?model\b.{0,80}\bis (currently )?(loading|overloaded)\b"
    r"|^\W*(\w+\.)*(RateLimit|API\w*|InternalServer|ServiceUnavailable|HTTP\w*)(Error|Exception)\s*[:(]"
    r"|^\W*((api|server|upstream|openai|http)\b\W*)*error( code)?\W{1,3}[45]\d\d\b",
    re.IGNORECASE | re.DOTALL,
)

_ASKS_BACK = re.compile(
    r"\b(please (provide|share|specify|clarify)|(could|can) you (please )?(clarify|provide|specify|share)"
    r"|(need|require) (more|additional|further) (information|details|context))\b",
    re.IGNORECASE,
)
_ONLY_AGREES = re.compile(
    r"^\W*(understood|thank you|thanks|noted|got it|okay|alright|sure|certainly|of course)\b", re.IGNORECASE
)


def looks_like_endpoint_error(text: str) -> bool:
    """Whether a text is an endpoint's own message rather than a model's, as gateways send them with status 200."""
    return len(text) <= _ERROR_CHARS and _ERROR_TEXT.search(text) is not None


def is_refusal(text: str) -> bool:
    """Whether a text begins by declining."""
    return _REFUSAL.search(text[:_REFUSAL_CHARS].replace("’", "'")) is not None


def is_failed_answer(text: str) -> bool:
    """The failure detector of Auto Evol-Instruct (Zeng et al. 2024, section 3.3): an answer that betrays its question.

    Thanks or consent that end in a question show an instruction that asks for nothing; a request for what should have
    stood in it shows one that lost its content.
    """
    text = text.strip()
    return (_ONLY_AGREES.match(text) is not None and text.endswith("?")) or (
        _ASKS_BACK.search(text[:_ERROR_CHARS]) is not None
    )


def whole_text(completion: Completion) -> str | Rejection:
    """The text of a finished reply without its reasoning, or why there is none."""
    if completion.finish == "error":
        return Rejection("errored")
    if completion.finish == "content_filter":
        return Rejection("refused")
    if completion.finish == "length":
        return Rejection("truncated")
    text = _REASONING.sub("", completion.text).strip()
    return text or Rejection("unparsed")


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
