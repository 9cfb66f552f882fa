"""The date that a chat template prints: pinned in the profile, since Llama's would print today's. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator

IsoDate: TypeAlias = Annotated[str, AfterValidator(lambda text: date.fromisoformat(text).isoformat())]
"""Such as 2024-07-26; other forms of ISO 8601 become this one."""
PINNED_CLOCK = "{% macro strftime_now(format) %}{{ date_string }}{% endmacro %}{{ '' }}"
"""Put before every template: some ask the clock without looking for date_string. The empty output keeps what follows
from losing its first line break to the macro."""

_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


def date_string(day: date) -> str:
    """As Llama's template writes dates, 26 Jul 2024, in English under any locale."""
    return f"{day.day:02d} {_MONTHS[day.month - 1]} {day.year}"


def rendered(tokenizer: Any, messages: Sequence[dict[str, str]], day: date, *, ask: bool = True, **options: Any) -> str:
    """A conversation under the tokenizer's chat template, which writes its own BOS, with the pinned date.

    Args:
        tokenizer: one with a template.
        messages: with `role` and `content`.
        day: printed by templates that print a date.
        ask: whether the header of an assistant's turn follows.
        options: more of apply_chat_template.

    Raises:
        TemplateError: the template refuses the conversation.
    """
    text = tokenizer.apply_chat_template(
        list(messages),
        tokenize=False,
        add_generation_prompt=ask,
        chat_template=PINNED_CLOCK + tokenizer.get_chat_template(),
        date_string=date_string(day),
        **options,
    )
    return str(text)
