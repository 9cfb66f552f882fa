"""Turns of a conversation as data sets write them: {role, content}, or ShareGPT's {from, value}. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

ROLES: dict[str, str] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
}
"""ShareGPT's names of speakers and the chat template's → the chat template's."""


class Turn(NamedTuple):
    """One turn with its speaker as the data set names him, and its text as it is."""

    speaker: str
    content: str

    @property
    def role(self) -> str | None:
        """The chat template's role, None for an unknown speaker."""
        return ROLES.get(self.speaker)


def read_turn(value: Any) -> Turn | None:
    """The turn that a record holds, None if it has neither layout."""
    if not isinstance(value, Mapping):
        return None
    for speaker_field, content_field in (("from", "value"), ("role", "content")):
        # A table that mixes both layouts has all four fields in every turn, the unused ones empty.
        speaker, content = value.get(speaker_field), value.get(content_field)
        if isinstance(speaker, str) and isinstance(content, str):
            return Turn(speaker, content)
    return None
