"""Texts as words and as hashes of runs of words: what duplicates and evaluation items are compared by."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import regex
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Scripts that put no space between words: each character counts as a word, else a sentence would be one."""
_WORD = rf"[{_UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--[{_UNSPACED}]]+"
_WORDS = regex.compile(_WORD, regex.V1)
_TOKENS = regex.compile(rf"{_WORD}|\S", regex.V1)
_BASE = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that no bit of a word is lost on the way into a run's hash."""


def plain(text: str) -> str:
    """The text in composed form (NFC) without case, and with one space for any white space."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def words(text: str) -> list[str]:
    """Words without case and punctuation, compatibility forms folded (NFKC): "Ｆｕｌｌ-width" is full, width."""
    return _WORDS.findall(unicodedata.normalize("NFKC", text).casefold())


def tokens(text: str) -> list[str]:
    """Words, and every other visible character by itself: "2 + 3" and "2 - 3" differ."""
    return _TOKENS.findall(unicodedata.normalize("NFKC", text).casefold())


@lru_cache(maxsize=1 << 20)
def _word_hash(word: str) -> int:
    # Python's own hash of a string is another one in every process.
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def run_hashes(of: Sequence[str], length: int) -> Hashes:
    """Hashes of all runs of `length` words, (len(of) - length + 1,); empty if there are fewer words than that."""
    if len(of) < length:
        return np.empty(0, np.uint64)
    each = np.fromiter((_word_hash(word) for word in of), np.uint64, len(of))
    count = len(of) - length + 1
    runs = np.zeros(count, np.uint64)
    for offset in range(length):
        # uint64 arrays wrap around at 2**64, which is what is meant.
        runs = runs * _BASE + each[offset : offset + count]
    return runs
