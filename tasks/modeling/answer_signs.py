"""Signs in a model's answer that it is none: a refusal, an endpoint's error, a question back, a text cut off.

Patterns only, in English. They are written to miss rather than to accuse: a good answer that is taken for a refusal is
lost without a trace, a refusal that is missed is one row among many.
"""

from __future__ import annotations

import re

_REFUSAL_CHARS = 200
_ERROR_CHARS = 600
"""Gateways' messages are short; a long text that begins like one is more likely an answer about errors."""

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

_ASKED_CHARS = 250
_ASKING_CHARS = 600
"""An answer that asks for what is missing is short and begins with that; an essay or a form may contain the words."""
_LETTER = re.compile(
    r"^\W*(subject:|dear\b|to whom it may concern|(hi|hello|good (morning|afternoon))\b[^.!?\n]*,\s*\n)", re.I
)
"""Letters ask their reader, who is another one."""
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
    if _ONLY_AGREES.match(text) is not None and text.endswith("?"):
        return True
    if len(text) > _ASKING_CHARS or _LETTER.match(text) is not None:
        return False
    return _ASKS_BACK.search(text[:_ASKED_CHARS]) is not None


def is_cut_off(text: str) -> bool:
    """Whether a text ends in the middle: in an open code block, after an opening bracket or a comma, or after a word
    that cannot be the last of a sentence.

    A missing full stop alone says nothing: an answer may be a number, a name, a line of code or of a list.
    """
    text = text.rstrip()
    if _open_fence(text):
        return True
    # Code outside a block may end as it likes; so may one word that was asked for.
    return _ENDS_OPEN.search(text) is not None and len(text.split()) > _SHORT_ANSWER_WORDS


_SHORT_ANSWER_WORDS = 8
"""Up to here the last word may be the answer itself: "The missing word is: the"."""
# A single "a" may be a letter of a sequence: an article follows a word.
_ENDS_OPEN = re.compile(
    r"([,({\[]|(?<=[a-z]{2} )a|\b(an|the|of|and|or|nor|but|because|although|while|whereas|which|whose|into|from|with"
    r"|without|between|including|such as))$",
    re.IGNORECASE,
)


def _open_fence(text: str) -> bool:
    """Whether a Markdown code block is opened and not closed. A fence closes only one of its own mark and length."""
    opened = None
    for line in text.splitlines():
        match = re.match(r"\s*(`{3,}|~{3,})(.*)$", line)
        if match is None:
            continue
        fence, rest = match[1], match[2]
        if opened is None:
            # ```code``` within a line is no block.
            opened = fence if fence[0] not in rest else None
        elif fence[0] == opened[0] and len(fence) >= len(opened) and not rest.strip():
            opened = None
    return opened is not None
