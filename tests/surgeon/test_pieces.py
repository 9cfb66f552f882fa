"""A foreign token is spelled exactly, with digits one by one, and never by a token that is no text."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.surgeon.pieces import student_pieces
from tasks.surgeon.vocabulary import bytes_of, name_of, read_vocabulary, shown


def _student(missing: bytes = b"") -> PreTrainedTokenizerFast:
    """Merges " 1", "12", "123", "the" and " the"; NFC; groups of digits are words; some added tokens."""
    letters = [name_of(bytes([byte])) for byte in range(256) if byte not in missing]
    merges = [("Ġ", "1"), ("1", "2"), ("12", "3"), ("t", "h"), ("th", "e"), ("Ġ", "the")]
    vocab = {token: place for place, token in enumerate([*letters, *("".join(pair) for pair in merges)])}
    backend = Tokenizer(models.BPE(vocab, merges))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("    ", normalized=False)])
    backend.add_special_tokens([AddedToken("<s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<s>")  # type: ignore[no-untyped-call]


def _spelled(student: PreTrainedTokenizerFast, *texts: bytes) -> list[list[bytes]]:
    spelled = read_vocabulary(student, "student").spelled
    return [[spelled[piece] for piece in pieces] for pieces in student_pieces([name_of(t) for t in texts], student)]


def test_numbers_are_single_digits_even_where_the_student_has_groups() -> None:
    student = _student()
    assert student.tokenize(" 123") == ["Ġ1", "2", "3"]
    assert _spelled(student, b"123", b" 12", b"  1", b"the 12") == [
        [b"1", b"2", b"3"],
        [b" ", b"1", b"2"],
        [b" ", b" ", b"1"],
        [b"the", b" ", b"1", b"2"],
    ]


@pytest.mark.parametrize(
    "text",
    ["e\u0301".encode(), b"\xe6\xb0", b" \xf0\x9f", b"\n\n   x", b"<tool>", b"<s>", b"    ", b"\xff\xfe", b" the\x00"],
)
def test_bytes_are_spelled_exactly_and_only_by_learned_tokens(text: bytes) -> None:
    student = _student()
    added = set(student.added_tokens_decoder)
    (pieces,) = student_pieces([name_of(text)], student)
    assert not added & set(pieces)
    assert b"".join(_spelled(student, text)[0]) == text


def test_a_byte_that_the_student_lacks_spells_nothing() -> None:
    assert _spelled(_student(missing=b"\xf5z"), b"\xf5", b"zoo", b"the") == [[], [], [b"the"]]


def test_names_and_bytes_are_two_sides_of_one() -> None:
    everything = bytes(range(256))
    assert bytes_of(name_of(everything)) == everything
    assert bytes_of("Ġa") == b" a"
    # A space is no letter of the alphabet, and neither is a character of another script.
    assert bytes_of("a b") is None
    assert bytes_of("▁a") is None
    assert shown(b"a\xe6") == "a\\xe6"


def test_a_vocabulary_knows_text_from_what_steers() -> None:
    student = _student()
    vocabulary = read_vocabulary(student, "student")
    assert list(vocabulary.special_names) == ["<s>"]
    assert vocabulary.by_bytes[b"    "] == vocabulary.by_text["    "]
    assert b"<s>" not in vocabulary.by_bytes
    assert vocabulary.size == len(student)
    pieces = models.Unigram([("▁the", 0.0), ("▁", -1.0)], unk_id=0)
    with pytest.raises(BadInputError, match="donor's tokenizer is not byte-level BPE"):
        read_vocabulary(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(pieces)), "donor")
