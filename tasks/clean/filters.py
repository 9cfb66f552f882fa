"""Steps that judge a row alone: its length, its answers, its language. None of them depends on the rows around it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tasks.artifacts.errors import BadInputError
from tasks.clean.rows import Row
from tasks.clean.stage import Language, Length
from tasks.modeling.answer_signs import is_cut_off, is_refusal

Why = dict[str, Any]
"""What is said of a removed row beside its id."""
Judge = Callable[[Row], Why | None]
"""Why a row is removed, None if it is not."""
_SHOWN_CHARS = 80
_CODE_BLOCK = re.compile(r"^\s*(`{3,}|~{3,}).*?^\s*\1\s*$", re.DOTALL | re.MULTILINE)


def length_judge(bounds: Length) -> Judge:
    """Rows outside the bounds."""

    def judge(row: Row) -> Why | None:
        shortest = min((len(answer.strip()) for answer in row.answers), default=0)
        if bounds.min_answer_chars is not None and shortest < bounds.min_answer_chars:
            return {"answer_chars": shortest}
        chars = sum(len(turn.content) for turn in row.turns)
        if bounds.max_chars is not None and chars > bounds.max_chars:
            return {"chars": chars}
        if bounds.max_turns is not None and len(row.spoken) > bounds.max_turns:
            return {"turns": len(row.spoken)}
        return None

    return judge


def refused(row: Row) -> Why | None:
    """Rows in which an answer is a refusal; one in the middle of a conversation teaches to refuse as well."""
    return next(({"begins": answer[:_SHOWN_CHARS]} for answer in row.answers if is_refusal(answer)), None)


def cut_off(row: Row) -> Why | None:
    """Rows in which an answer ends in the middle."""
    return next(({"ends": answer[-_SHOWN_CHARS:]} for answer in row.answers if is_cut_off(answer)), None)


def language_judge(wanted: Language) -> Judge:
    """Rows whose text outside code blocks is most likely in another language.

    Raises:
        BadInputError: the identifier does not know a code.
    """
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    unknown = sorted(set(wanted.allowed) - set(identifier.labels))
    if unknown:
        raise BadInputError(
            f"clean.recipe.language.allowed has {', '.join(unknown)}, which py3langid does not know; choose from "
            f"{', '.join(sorted(identifier.labels))}"
        )
    allowed = frozenset(wanted.allowed)

    def judge(row: Row) -> Why | None:
        text = "\n".join(_CODE_BLOCK.sub("", turn.content) for turn in row.spoken)
        if sum(map(str.isalpha, text)) < wanted.min_letters:
            return None
        found, probability = identifier.classify(text)
        return None if found in allowed else {"language": found, "probability": round(probability, 3)}

    return judge
