"""What a transplant makes each row of the donor's vocabulary of, known before it starts.

Tokens are matched by their bytes. Every token of the donor is in exactly one of four parts: shared (the student has
the same bytes), mapped (a special token, by the recipe's map), composed (of the student's own tokens), approximated
(by recipe.method, from the donor's embeddings).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.surgeon.coverage import count_kinds, examples, kinds_of, spelled_out, text_coverage
from tasks.surgeon.ends import check_ends, end_names, shadowed_ends
from tasks.surgeon.kinds import KINDS
from tasks.surgeon.pieces import student_pieces
from tasks.surgeon.special_tokens import (
    MappedToken,
    duty_of,
    require_complete,
    required_tokens,
    resolve_map,
    useful_additions,
)
from tasks.surgeon.stage import TransplantRecipe
from tasks.surgeon.vocabulary import Vocabulary, name_of, read_vocabulary

PLAN_FILE = "transplant_plan.json"
PARTS = ("shared", "mapped", "composed", "approximated")

_NEEDS_K_SHARED = ("omp_anchored", "omp", "common_interpolation")
_NUM_IDLE = 16
_BYTES_WITHOUT_TEXT = (0xC0, 0xC1, *range(0xF5, 0x100), *range(9), *range(0x0E, 0x20), 0x7F)
"""UTF-8 has no use for the first thirteen, text none for the rest."""


@dataclass(frozen=True)
class TransplantPlan:
    """The origin of every row, by donor id; ids from `real_vocab_size` on are padding, up to `rows`."""

    real_vocab_size: int
    rows: int
    shared_donor_ids_S: npt.NDArray[np.int64]
    """In ascending order, without the mapped ones."""
    shared_student_ids_S: npt.NDArray[np.int64]
    """The student's token of the same bytes, at the same place."""
    is_text_S: npt.NDArray[np.bool_]
    """Which of them are text: special ones steer, and no row of text is made of theirs."""
    mapped: tuple[MappedToken, ...]
    """By the recipe's map, their rows copied like shared ones; in ascending order of the donor's ids."""
    composed: dict[int, tuple[int, ...]]
    """Donor id → student ids whose mean it is, in ascending order of the donor's ids; an id may be there twice."""
    approximated_donor_ids: npt.NDArray[np.int64]
    """By recipe.method from the donor's embeddings; in ascending order. Empty with method composed."""
    kinds: tuple[str, ...]
    """By donor id, real_vocab_size of them: "special" or a kind of tasks/surgeon/kinds.py; "" where no token has it."""
    counts: dict[str, dict[str, int]]
    """Number of tokens by part (PARTS, and student_only: what the student loses) and by kind; "total" is the sum."""
    description: dict[str, Any]
    """What `record` adds to the counts: JSON for people."""

    def record(self) -> dict[str, Any]:
        """surgery.json: counts, map, padding, examples, coverage of texts; not the 100,000 names."""
        return {
            "real_vocab_size": self.real_vocab_size,
            "rows": self.rows,
            "padding_rows": self.rows - self.real_vocab_size,
            "counts": self.counts,
            "mapped": [vars(token) for token in self.mapped],
            **self.description,
        }

    def compositions(self) -> str:
        """PLAN_FILE: one JSON object with `shared` and `mapped` as [donor ids, student ids], `composed` as donor id →
        student ids, and `approximated` as donor ids, one part a line."""
        parts: dict[str, Any] = {
            "shared": [self.shared_donor_ids_S.tolist(), self.shared_student_ids_S.tolist()],
            "mapped": [[token.donor_id for token in self.mapped], [token.student_id for token in self.mapped]],
            "composed": self.composed,
            "approximated": self.approximated_donor_ids.tolist(),
        }
        lines = (f'"{name}":{json.dumps(part, separators=(",", ":"))}' for name, part in parts.items())
        return "{" + ",\n".join(lines) + "}\n"


def plan_transplant(
    student: PreTrainedTokenizerFast,
    donor: PreTrainedTokenizerFast,
    recipe: TransplantRecipe,
    rows: int,
    listed: Sequence[int] = (),
) -> TransplantPlan:
    """Compares the vocabularies and says what each of the donor's rows will be made of.

    `rows` is the number of rows of the result, at least the donor's real size; `listed` are the ends that the donor's
    generation_config.json lists. Reads no weights.

    Raises:
        BadInputError: a tokenizer is not byte-level BPE, nothing or less than recipe.k is shared, the map names an
            unknown token, leaves out one that a chat depends on or makes of an end what is none, composed_kinds names
            no kind, or the rows do not hold the vocabulary.
    """
    ours, theirs = read_vocabulary(student, "student"), read_vocabulary(donor, "donor")
    _check_rows_and_kinds(recipe, rows, theirs)
    mapped = resolve_map(ours, theirs, recipe.special_tokens)
    ends = end_names(donor, theirs, listed)
    require_complete(student, donor, (ours, theirs), recipe.special_tokens, ends)
    check_ends(mapped, ours, ends, set(required_tokens(donor, theirs)) - {donor.bos_token, donor.pad_token})
    shared = shared_tokens(ours, theirs, {token.donor_id for token in mapped})
    is_text = [token not in theirs.special for token in shared]
    _check_shared(recipe, len(shared), sum(is_text))

    kinds = kinds_of(theirs)
    taken = shared.keys() | {token.donor_id for token in mapped}
    invented = [token for token in theirs.spelled if token not in taken]
    is_composed = recipe.method == "composed"
    to_compose = [token for token in invented if is_composed or kinds[token] in recipe.composed_kinds]
    idle = _idle_tokens(student, ours, {*shared.values(), *(token.student_id for token in mapped)})
    composed = _composed(student, theirs, to_compose, idle)
    approximated = [token for token in invented if token not in composed]
    counts = _counts(
        kinds, dict(zip(PARTS, (shared, (t.donor_id for t in mapped), composed, approximated), strict=True))
    )
    lost = ours.spelled.keys() - set(shared.values()) - {token.student_id for token in mapped}
    steering = {donor_id: student_id for donor_id, student_id in shared.items() if donor_id in theirs.special}
    steering |= {token.donor_id: token.student_id for token in mapped}
    student_kinds = kinds_of(ours)
    counts["student_only"] = count_kinds(student_kinds[token] for token in lost)
    return TransplantPlan(
        real_vocab_size=theirs.size,
        rows=rows,
        shared_donor_ids_S=np.array(list(shared), dtype=np.int64),
        shared_student_ids_S=np.array(list(shared.values()), dtype=np.int64),
        is_text_S=np.array(is_text, dtype=np.bool_),
        mapped=mapped,
        composed=composed,
        approximated_donor_ids=np.array(approximated, dtype=np.int64),
        kinds=kinds,
        counts=counts,
        description={
            "student_tokens": len(ours.spelled),
            "method": recipe.method,
            "composed_kinds": list(recipe.composed_kinds),
            "unmapped_specials": [_text(theirs, token) for token in invented if token in theirs.special],
            "shadowed_ends": shadowed_ends(steering, {token: _text(theirs, token) for token in steering}, set(ends)),
            "rows_of_text": _rows_of_text(mapped, theirs, shared),
            "proposed": useful_additions(student, donor, (ours, theirs), recipe.special_tokens),
            "idle": {
                "tokens": [spelled_out(ours, token) for token in idle],
                "rows": sum(pieces == idle for pieces in composed.values()),
            },
            "texts": text_coverage(donor, composed.keys() | set(approximated)),
            "examples": examples(ours, theirs, kinds, composed, approximated, idle),
        },
    )


def _rows_of_text(mapped: Sequence[MappedToken], theirs: Vocabulary, shared: Mapping[int, int]) -> list[dict[str, str]]:
    """Mapped tokens whose row a text token of the donor has too, as {token, text}: the head gives both one logit."""
    text_of = {student_id: donor_id for donor_id, student_id in shared.items() if donor_id not in theirs.special}
    return [
        {"token": token.donor, "text": _text(theirs, text_of[token.student_id])}
        for token in mapped
        if token.student_id in text_of
    ]


def _check_rows_and_kinds(recipe: TransplantRecipe, rows: int, donor: Vocabulary) -> None:
    if rows < donor.size:
        raise BadInputError(
            f"recipe.rows is {rows}, but the donor's tokenizer has ids up to {donor.size - 1}; raise it"
        )
    unknown = [kind for kind in recipe.composed_kinds if kind not in KINDS]
    if unknown:
        raise BadInputError(
            f"recipe.composed_kinds names {unknown[0]!r}, which is no kind of token; the kinds are {', '.join(KINDS)}"
        )


def _check_shared(recipe: TransplantRecipe, num_shared: int, num_text: int) -> None:
    if num_shared == 0:
        raise BadInputError("student and donor share no tokens; choose models with closer tokenizers")
    # mergekit's methods take special tokens for anchors too.
    num_anchors, kind = (num_text, " of text") if recipe.method == "omp_anchored" else (num_shared, "")
    if recipe.method in _NEEDS_K_SHARED and num_anchors < recipe.k:
        raise BadInputError(
            f"student and donor share {num_anchors} tokens{kind}, and recipe.k asks for {recipe.k}; lower k or choose "
            f"models with closer tokenizers"
        )


def shared_tokens(ours: Vocabulary, theirs: Vocabulary, mapped: Set[int] = frozenset()) -> dict[int, int]:
    """Donor id (of `theirs`) → student id of the same bytes, without the donor's `mapped` ids, in ascending order.

    Special tokens meet special ones only: text that looks like one has not been trained as one.
    """
    special = ours.special_names
    shared: dict[int, int] = {}
    for token, spelled in theirs.spelled.items():
        if token in mapped:
            continue
        same = special.get(spelled.decode()) if token in theirs.special else ours.by_bytes.get(spelled)
        if same is not None:
            shared[token] = same
    return shared


def _idle_tokens(student: PreTrainedTokenizerFast, ours: Vocabulary, used: set[int]) -> tuple[int, ...]:
    """Tokens of the student that no text and no chat of its own has: what a special token without a counterpart, or a
    byte that the student lacks, is made of.

    The pieces of such a token's text ("<", "|", …) are likely in code, and a row near theirs takes probability from
    them. 250 rows in SmolLM2 cost, in bits a token: made of pieces 0.00003 to 0.001, as copies of <|endoftext|> up to
    0.011, made of idle tokens at most 0.00005.
    """
    busy = used | {ours.by_text[name] for name in required_tokens(student, ours)}
    idle = [token for name, token in ours.special_names.items() if token not in busy and duty_of(name) is None]
    # Those with a duty outside of chats, such as <repo_name>, only where there are no better ones.
    idle = idle or [token for token in ours.special_names.values() if token not in busy]
    if not idle:
        rare = (ours.by_bytes.get(bytes([byte])) for byte in (*_BYTES_WITHOUT_TEXT, *range(256)))
        idle = [token for token in rare if token is not None]
    return tuple(idle[:_NUM_IDLE])


def _composed(
    student: PreTrainedTokenizerFast, theirs: Vocabulary, tokens: Iterable[int], idle: tuple[int, ...]
) -> dict[int, tuple[int, ...]]:
    tokens = list(tokens)
    texts = [token for token in tokens if token not in theirs.special]
    pieces = dict(zip(texts, student_pieces([name_of(theirs.spelled[token]) for token in texts], student), strict=True))
    return {token: pieces.get(token) or idle for token in tokens}


def _counts(kinds: tuple[str, ...], parts: Mapping[str, Iterable[int]]) -> dict[str, dict[str, int]]:
    return {name: count_kinds(kinds[token] for token in tokens) for name, tokens in parts.items()}


def _text(vocabulary: Vocabulary, token: int) -> str:
    return vocabulary.spelled[token].decode()
