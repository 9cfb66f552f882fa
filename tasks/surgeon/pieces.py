"""How a student would write the tokens of another vocabulary in tokens of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tasks.surgeon.vocabulary import bytes_of

_DIGIT = re.compile("([0-9])")


def student_pieces(tokens: Sequence[str], student: PreTrainedTokenizerFast) -> list[tuple[int, ...]]:
    """The student's ids that spell exactly the bytes of each token, given by its byte-level name.

    Text is cut as the student reads it, but numbers into single digits even where the student has larger groups: the
    rows of digits are those that arithmetic was learnt with. Special and added tokens of the student spell nothing.
    Empty for a token with a byte that the student has no token for (SmolLM2 lacks 21 that no text has).
    """
    model = student.backend_tokenizer.model
    reader = _reader(student)
    texts = [_text(token) for token in tokens]
    read = iter(reader.encode_batch([text for text in texts if text is not None], add_special_tokens=False))
    pieces: list[tuple[int, ...]] = []
    for token, text in zip(tokens, texts, strict=True):
        if text is not None:
            encoding = next(read)
            if "".join(encoding.tokens) == token:
                pieces.append(tuple(encoding.ids))
                continue
        # Part of a character is no text for a pre-tokenizer; the merges apply to its bytes all the same.
        cut = [piece for part in _DIGIT.split(token) if part for piece in model.tokenize(part)]
        pieces.append(tuple(piece.id for piece in cut) if "".join(piece.value for piece in cut) == token else ())
    return pieces


def _reader(student: PreTrainedTokenizerFast) -> Tokenizer:
    """The student's merges and pre-tokenizer without its normaliser (it would write other bytes) and added tokens."""
    backend = student.backend_tokenizer
    reader = Tokenizer(backend.model)
    words = backend.pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    reader.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    return reader


def _text(token: str) -> str | None:
    spelled = bytes_of(token)
    try:
        return None if spelled is None else spelled.decode()
    except UnicodeDecodeError:
        return None
