"""What a transplant does to each token, known before it starts: shared, invented, or mapped by hand."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.modeling.tokenizer_files import real_vocab_size

_BYTE_LEVEL_SPACE = "Ġ"


@dataclass(frozen=True)
class MappedToken:
    """A donor token that takes the rows of a student token."""

    donor: str
    donor_id: int
    student: str
    student_id: int


@dataclass(frozen=True)
class TransplantPlan:
    """The two vocabularies side by side. Tokens are in the tokenizers' own spelling."""

    real_vocab_size: int
    rows: int
    shared: tuple[str, ...]
    donor_only: tuple[str, ...]
    student_only: tuple[str, ...]
    mapped: tuple[MappedToken, ...]
    unmapped_specials: tuple[str, ...]
    """Special tokens of the donor alone that no one mapped: their rows are approximated like any other."""
    counts: dict[str, dict[str, int]]
    """Number of tokens by part (shared, donor_only, student_only) and kind."""

    def record(self) -> dict[str, Any]:
        """surgery.json: counts and the explicit part, not the 100,000 names."""
        return {
            "real_vocab_size": self.real_vocab_size,
            "rows": self.rows,
            "padding_rows": self.rows - self.real_vocab_size,
            "counts": self.counts,
            "mapped": [vars(token) for token in self.mapped],
            "unmapped_specials": list(self.unmapped_specials),
        }


def plan_transplant(
    student: PreTrainedTokenizerFast,
    donor: PreTrainedTokenizerFast,
    special_tokens: Mapping[str, str],
    rows: int,
    min_shared: int,
) -> TransplantPlan:
    """Compares the vocabularies and resolves the map.

    Raises:
        BadInputError: a tokenizer is not byte-level BPE, too few tokens are shared, the map names an unknown token or
            leaves out one that a chat depends on, or the rows do not hold the vocabulary.
    """
    student_ids, donor_ids = student.get_vocab(), donor.get_vocab()
    for role, vocab in (("student", student_ids), ("donor", donor_ids)):
        if _BYTE_LEVEL_SPACE not in "".join(vocab):
            raise BadInputError(
                f"the {role}'s tokenizer is not byte-level BPE, the only kind that is matched by name here; "
                f"use models with tokenizers like those of Llama 3, Qwen or SmolLM2"
            )
    shared = tuple(sorted(donor_ids.keys() & student_ids.keys(), key=donor_ids.__getitem__))
    if len(shared) < min_shared:
        raise BadInputError(
            f"student and donor share {len(shared)} tokens, and recipe.k asks for {min_shared}; lower k or choose "
            f"models with closer tokenizers"
        )
    real = real_vocab_size(donor)
    if rows < real:
        raise BadInputError(f"recipe.rows is {rows}, but the donor's tokenizer has ids up to {real - 1}; raise it")
    mapped = tuple(_resolve(student, donor_ids, *pair) for pair in special_tokens.items())
    _require_complete(student, donor, special_tokens)
    donor_only = tuple(sorted(donor_ids.keys() - student_ids.keys(), key=donor_ids.__getitem__))
    student_only = tuple(sorted(student_ids.keys() - donor_ids.keys(), key=student_ids.__getitem__))
    donor_specials, student_specials = _special_names(donor), _special_names(student)
    return TransplantPlan(
        real_vocab_size=real,
        rows=rows,
        shared=shared,
        donor_only=donor_only,
        student_only=student_only,
        mapped=mapped,
        unmapped_specials=tuple(
            token for token in donor_only if token in donor_specials and token not in special_tokens
        ),
        counts={
            "shared": _count(donor, shared, donor_specials),
            "donor_only": _count(donor, donor_only, donor_specials),
            "student_only": _count(student, student_only, student_specials),
        },
    )


def required_tokens(donor: PreTrainedTokenizerFast) -> list[str]:
    """Special tokens without which a chat in the donor's format cannot start or stop, in the order of their ids."""
    template = donor.chat_template or ""
    names = {token for token in _special_names(donor) if token in template}
    names |= {token for token in (donor.bos_token, donor.eos_token, donor.pad_token) if token}
    return sorted(names, key=donor.convert_tokens_to_ids)


def kind_of(text: str) -> str:
    """Kind of a decoded token: digits, words, punctuation, white space, or not ASCII (also parts of characters)."""
    if not text.isascii():
        return "non_ascii"
    if not text.strip():
        return "white_space"
    if re.fullmatch(r"\s*[0-9]+", text):
        return "digits"
    if re.fullmatch(r"\s*[A-Za-z]+", text):
        return "ascii_words"
    return "punctuation"


def _count(tokenizer: PreTrainedTokenizerFast, tokens: Iterable[str], specials: set[str]) -> dict[str, int]:
    kinds = Counter(
        "special" if token in specials else kind_of(tokenizer.convert_tokens_to_string([token])) for token in tokens
    )
    return {"total": sum(kinds.values()), **{kind: kinds[kind] for kind in sorted(kinds)}}


def _special_names(tokenizer: PreTrainedTokenizerFast) -> set[str]:
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return added | set(tokenizer.all_special_tokens)


def _resolve(
    student: PreTrainedTokenizerFast, donor_ids: Mapping[str, int], donor_token: str, student_token: str
) -> MappedToken:
    if donor_token not in donor_ids:
        raise BadInputError(f"recipe.special_tokens maps {donor_token!r}, which the donor's tokenizer does not have")
    student_id = student.get_vocab().get(student_token)
    if student_id is None:
        ids = student.encode(student_token, add_special_tokens=False)
        if len(ids) != 1:
            raise BadInputError(
                f"recipe.special_tokens maps {donor_token!r} to {student_token!r}, which is neither a token of the "
                f"student nor a text that its tokenizer makes one token of ({len(ids)}); its special tokens are "
                f"{sorted(_special_names(student))}"
            )
        student_id = ids[0]
    return MappedToken(donor_token, donor_ids[donor_token], student_token, student_id)


def _require_complete(
    student: PreTrainedTokenizerFast, donor: PreTrainedTokenizerFast, special_tokens: Mapping[str, str]
) -> None:
    known = student.get_vocab()
    missing = [token for token in required_tokens(donor) if token not in special_tokens and token not in known]
    if missing:
        proposal = ", ".join(f'"{token}": "{_propose(student, donor, token)}"' for token in missing)
        raise BadInputError(
            f"recipe.special_tokens does not say which rows of the student {', '.join(missing)} of the donor take, and "
            f"without them a chat does not start or stop; consider {{{proposal}}}"
        )


def _propose(student: PreTrainedTokenizerFast, donor: PreTrainedTokenizerFast, token: str) -> str:
    """A student token of the same duty, for the sentence that asks the user to decide."""
    names = _special_names(student)
    neutral = next((name for name in (student.bos_token, "<|endoftext|>", student.pad_token) if name in names), None)
    end = student.eos_token or neutral or "?"
    if token in (donor.bos_token, donor.pad_token):
        return neutral or end
    if "start" in token:
        start = end.replace("end", "start")
        return start if start in names else neutral or end
    return "\\n" if "end_header" in token else end
