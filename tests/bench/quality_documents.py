"""Real English for the comparison of a student with its twin: Python's documentation, in two files.

Documents are docstrings and topics of the reference, in the fixed order of `library_documents`, where those of a module
are neighbours. Test is dealt first, then training, of which the corpus stage holds out dev by each document's hash. A
document that shares 13 words in a row with one before it is left out: docstrings repeat each other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tasks.exercises.library_text import library_documents
from tests.bench.quality_folder import FOLDER

SPLITS = {"test": 400_000, "training": 480_000}
"""Bytes of each, reached by whole documents, in the order of dealing; about 3.8 bytes a token."""
MIN_BYTES = 240
"""In a shorter document little depends on what came before."""
MAX_BYTES = 6000
"""A longer one is cut at the end of a line, or a topic of the reference (50,000) would be most of a split."""
SHARED_WORDS = 13
_WORD = re.compile(r"\w+")


def documents_file(split: str) -> Path:
    """A JSON Lines file with the field "text"; made on the first call."""
    file = FOLDER / "documents" / f"{split}.jsonl"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".draft")
        draft.write_text("".join(json.dumps({"text": text}) + "\n" for text in split_documents()[split]))
        draft.rename(file)
    return file


def split_documents() -> dict[str, list[str]]:
    """The texts of each split."""
    documents = distinct(library_documents())
    splits: dict[str, list[str]] = {}
    for split, wanted in SPLITS.items():
        texts = splits[split] = list[str]()
        size = 0
        while size < wanted:
            text = _cut(next(documents))
            # Not ASCII: the windows in which bits are counted could cut a character in two.
            if len(text) >= MIN_BYTES and text.isascii():
                texts.append(text)
                size += len(text)
    return splits


def distinct(texts: Sequence[str]) -> Iterator[str]:
    """Those that share no `SHARED_WORDS` consecutive words with an earlier one."""
    seen: set[str] = set()
    for text in texts:
        words = _WORD.findall(text.lower())
        count = max(1, len(words) - SHARED_WORDS + 1)
        runs = {" ".join(words[at : at + SHARED_WORDS]) for at in range(count)}
        if runs.isdisjoint(seen):
            seen |= runs
            yield text


def _cut(text: str) -> str:
    return text if len(text) <= MAX_BYTES else text[: text.rindex("\n", 0, MAX_BYTES)]
