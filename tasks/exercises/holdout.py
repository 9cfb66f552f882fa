"""Which documents are held out: a function of their text alone, so that every tokenizer holds out the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

from tasks.artifacts.fingerprint import canonical_json


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


def conversation_text(messages: Iterable[Message]) -> str:
    """The raw text of a conversation, before any chat template."""
    return canonical_json([[message.role, message.content] for message in messages]).decode()


def is_heldout(document: str, fraction: float, seed: int) -> bool:
    """Whether a document (a text, or `conversation_text`) is in the held-out `fraction` under `seed`.

    With one seed the smaller fraction's documents are a subset of the larger one's. The miniatures are pre-trained
    with seed 0 and 0.1 held out, so a corpus of seed 0 and at most 0.1 holds out text that they have never seen.
    """
    digest = hashlib.sha256(f"{seed}\n{document}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
