"""A tokenizer's vocabulary as bytes: what two vocabularies are compared in, whatever names they give their tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError

_PRINTABLE = (range(0x21, 0x7F), range(0xA1, 0xAD), range(0xAE, 0x100))
"""Bytes whose name in the byte-level alphabet is the character of the same number; the others follow from 256 on."""


def _alphabet() -> dict[int, str]:
    printable = {byte for part in _PRINTABLE for byte in part}
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + at) for at, byte in enumerate(others)}


_NAME_OF_BYTE = _alphabet()
_TO_NAME = str.maketrans({chr(byte): name for byte, name in _NAME_OF_BYTE.items()})
_TO_LATIN = str.maketrans({name: chr(byte) for byte, name in _NAME_OF_BYTE.items()})
# Latin characters that are no letter of the alphabet must not pass for bytes.
_TO_LATIN |= {ord(chr(byte)): "\ufffd" for byte in range(256) if chr(byte) not in _NAME_OF_BYTE.values()}


def name_of(spelled: bytes) -> str:
    """The byte-level name of some bytes: b" a" is "Ġa"."""
    return spelled.decode("latin-1").translate(_TO_NAME)


def bytes_of(name: str) -> bytes | None:
    """The bytes of a byte-level name, None where it has a character that is no letter of that alphabet."""
    try:
        return name.translate(_TO_LATIN).encode("latin-1")
    except UnicodeEncodeError:
        return None


def shown(spelled: bytes) -> str:
    """Bytes as text for people; parts of characters as \\xe6."""
    return spelled.decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a byte-level tokenizer by id, in ascending order of the ids."""

    spelled: Mapping[int, bytes]
    """What each token stands for in text; an added token stands for its own text."""
    special: frozenset[int]
    """Tokens that steer and are no text: those marked as special, and any added one that looks like <|this|>."""
    by_text: Mapping[str, int]
    """The added tokens, special or not."""
    by_bytes: Mapping[bytes, int]
    """All tokens but the special ones. Where two have the same bytes, the one that is not an added token."""

    @property
    def size(self) -> int:
        """The largest id plus one: rows from there on are padding."""
        return max(self.spelled) + 1

    @property
    def special_names(self) -> dict[str, int]:
        """The special tokens by their text."""
        return {text: token for text, token in self.by_text.items() if token in self.special}

    def find(self, text: str) -> int | None:
        """The added token of this text, else the token of its bytes."""
        return self.by_text.get(text, self.by_bytes.get(text.encode()))


def read_vocabulary(tokenizer: PreTrainedTokenizerFast, role: str) -> Vocabulary:
    """Reads a tokenizer; `role` names it in errors.

    Raises:
        BadInputError: it is not byte-level BPE.
    """
    added = dict(tokenizer.added_tokens_decoder)
    marked = set(tokenizer.all_special_tokens)
    spelled: dict[int, bytes] = {token: entry.content.encode() for token, entry in added.items()}
    for name, token in tokenizer.get_vocab().items():
        if token in added:
            continue
        data = bytes_of(name)
        if data is None:
            raise BadInputError(
                f"the {role}'s tokenizer is not byte-level BPE (its token {token} is {name!r}), the only kind that is "
                f"matched by bytes here; use models with tokenizers like those of Llama 3, Qwen or SmolLM2"
            )
        spelled[token] = data
    if not any(b" " in data for token, data in spelled.items() if token not in added):
        raise BadInputError(
            f"the {role}'s tokenizer is not byte-level BPE (none of its tokens has a space), the only kind that is "
            f"matched by bytes here; use models with tokenizers like those of Llama 3, Qwen or SmolLM2"
        )
    special = frozenset(
        token
        for token, entry in added.items()
        if entry.special or entry.content in marked or (entry.content.startswith("<|") and entry.content.endswith("|>"))
    )
    ordered = dict(sorted(spelled.items()))
    by_bytes = {data: token for token, data in ordered.items() if token in added and token not in special}
    by_bytes |= {data: token for token, data in reversed(ordered.items()) if token not in added}
    return Vocabulary(
        spelled=ordered,
        special=special,
        by_text={entry.content: token for token, entry in sorted(added.items())},
        by_bytes=by_bytes,
    )
