"""Rows of instructions.jsonl as cleaning reads them, each with its line as it stands: what is kept is kept byte for
byte."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from tasks.artifacts.errors import BadInputError
from tasks.modeling.conversation import Turn, read_turn


@dataclass(frozen=True)
class Row:
    """A conversation."""

    id: str
    turns: tuple[Turn, ...]
    line: bytes

    @property
    def spoken(self) -> tuple[Turn, ...]:
        """The turns without the system prompt, which many rows of a data set share."""
        return tuple(turn for turn in self.turns if turn.role != "system")

    @property
    def answers(self) -> tuple[str, ...]:
        """What the assistant says."""
        return tuple(turn.content for turn in self.turns if turn.role == "assistant")


def read_rows(data: bytes, where: str) -> Iterator[Row]:
    """The rows of a JSONL file's bytes; `where` names it in errors.

    Raises:
        BadInputError: a line holds no row.
    """
    # Bytes are split at line feeds only; a text may hold U+2028. Whoever edited the file by hand may have left CRLF.
    for number, raw in enumerate(data.split(b"\n"), 1):
        line = raw.removesuffix(b"\r")
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise BadInputError(
                f"line {number} of {where} is no JSON ({error}); make the instructions again"
            ) from error
        fields = record if isinstance(record, dict) else {}
        messages = fields.get("messages")
        turns = [read_turn(message) for message in messages] if isinstance(messages, list) else []
        if not isinstance(fields.get("id"), str) or not turns or None in turns:
            raise BadInputError(
                f"line {number} of {where} has no id with a list of messages; make the instructions again"
            )
        yield Row(fields["id"], tuple(turn for turn in turns if turn is not None), line)
