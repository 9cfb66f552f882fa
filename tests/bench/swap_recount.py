"""The counts of a plan once more, from the files that the packages ship: without the project's reading of tokenizers.

Bytes come from base64 (Llama) or through transformers' table of the byte-level alphabet (Qwen), kinds from tables of
characters. All scripts and symbols beyond ASCII are one kind here: a plan tells them apart by Unicode names, for which
there is no second source (by the property Script "ー" is of none).
"""

from __future__ import annotations

import base64
import json
import string
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import regex
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tasks.surgeon.kinds import SCRIPTS

FOREIGN = "symbols"
"""The name of the kind of all scripts and symbols."""
_LETTERS, _DIGITS = set(string.ascii_letters), set(string.digits)
_PROSE_SIGNS = set(".,;:!?'\"()-")
_CONTROLS = {chr(code) for code in (*range(9), *range(14, 32), 127)}
_PUNCTUATION_AND_SPACE = regex.compile(r"[\p{P}\s\x00-\x7f]+")


@dataclass(frozen=True)
class RawVocabulary:
    """The tokens of a package's file by id."""

    texts: Mapping[int, bytes]
    """Of tokens that stand for text."""
    special: Mapping[int, str]

    def ids(self) -> set[int]:
        """All of them."""
        return {*self.texts, *self.special}


def read_llama(file: Path, specials: Mapping[int, str]) -> RawVocabulary:
    """Lines of a token in base64 and its id; the special ones are in no file."""
    texts = {int(rank): base64.b64decode(token) for token, rank in map(bytes.split, file.read_bytes().splitlines())}
    return RawVocabulary(texts, specials)


def read_tokenizer_json(file: Path, drop_ids_from: int) -> RawVocabulary:
    """A tokenizer.json of the byte-level alphabet."""
    state = json.loads(file.read_text(encoding="utf-8"))
    byte_of = {name: byte for byte, name in bytes_to_unicode().items()}
    added = {entry["id"]: entry for entry in state["added_tokens"] if entry["id"] < drop_ids_from}
    texts = {
        token: bytes(byte_of[letter] for letter in name)
        for name, token in state["model"]["vocab"].items()
        if token not in added
    }
    special = {
        token: entry["content"]
        for token, entry in added.items()
        # Whatever looks like one steers, marked or not.
        if entry["special"] or entry["content"][:2] + entry["content"][-2:] == "<||>"
    }
    texts |= {token: entry["content"].encode() for token, entry in added.items() if token not in special}
    return RawVocabulary(texts, special)


def shared_pairs(student: RawVocabulary, donor: RawVocabulary, mapped: Iterable[str]) -> dict[int, int]:
    """Donor id → student id of the same bytes, special tokens by their names; without the mapped ones."""
    # Of two with the same bytes the first, which is not an added one.
    by_bytes = {spelled: token for token, spelled in reversed(list(student.texts.items()))}
    by_name = {name: token for token, name in student.special.items()}
    left_out = set(mapped)
    pairs = {token: by_bytes[spelled] for token, spelled in donor.texts.items() if spelled in by_bytes}
    pairs |= {token: by_name[name] for token, name in donor.special.items() if name in by_name and name not in left_out}
    return pairs


def merged_kinds(counts: Mapping[str, int]) -> dict[str, int]:
    """A plan's counts with scripts and symbols together, without those of which there are none."""
    merged: Counter[str] = Counter()
    for kind, count in counts.items():
        merged[FOREIGN if kind in SCRIPTS else kind] += count
    return {kind: count for kind, count in merged.items() if count}


def counted_kinds(vocabulary: RawVocabulary, tokens: Iterable[int]) -> dict[str, int]:
    """How many of each kind, as `merged_kinds` has them."""
    counts = Counter(
        "special" if token in vocabulary.special else _kind(vocabulary.texts[token].decode("utf-8", "replace"))
        for token in tokens
    )
    return {"total": counts.total(), **counts} if counts else {}


def _kind(text: str) -> str:
    letters = set(text)
    inside = set(text.strip())
    if "\ufffd" in letters or letters & _CONTROLS:
        return "bytes"
    if not inside:
        return "white_space"
    if not text.isascii():
        return "punctuation" if _PUNCTUATION_AND_SPACE.fullmatch(text) else FOREIGN
    if inside <= _DIGITS:
        return "digits"
    word = text.strip().removeprefix("'")
    first, _, rest = word.partition("'")
    if first and set(first + rest) <= _LETTERS and word != f"{first}'":
        return "words"
    return "punctuation" if inside <= _PROSE_SIGNS | set(string.whitespace) else "code"
