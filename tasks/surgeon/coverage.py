"""What a plan means for text: tokens by kind, the share of invented rows in sample texts, examples spelled out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from transformers import PreTrainedTokenizerFast

from tasks.modeling.bits_per_byte import TEXTS
from tasks.surgeon.kinds import KINDS, kind_of
from tasks.surgeon.vocabulary import Vocabulary, shown

NUM_EXAMPLES = 12
"""Of a kind. The first of a vocabulary are its most frequent ones."""


def kinds_of(vocabulary: Vocabulary) -> tuple[str, ...]:
    """The kind of every id; "" where no token has it."""
    kinds = [""] * vocabulary.size
    for token, spelled in vocabulary.spelled.items():
        kinds[token] = "special" if token in vocabulary.special else kind_of(spelled.decode("utf-8", "replace"))
    return tuple(kinds)


def count_kinds(kinds: Iterable[str]) -> dict[str, int]:
    """How many of each, in the order of KINDS, after their total."""
    counts = Counter(kinds)
    return {"total": counts.total(), **{kind: counts[kind] for kind in KINDS if counts[kind]}}


def text_coverage(donor: PreTrainedTokenizerFast, invented: AbstractSet[int]) -> dict[str, dict[str, int]]:
    """How many of the donor's tokens of each kind of sample text have an invented row (composed or approximated)."""
    coverage = {}
    for kind, texts in TEXTS.items():
        ids = [token for text in texts for token in donor.encode(text, add_special_tokens=False)]
        coverage[kind] = {"tokens": len(ids), "invented": sum(token in invented for token in ids)}
    return coverage


def examples(
    ours: Vocabulary,
    theirs: Vocabulary,
    kinds: Sequence[str],
    composed: Mapping[int, Sequence[int]],
    approximated: Iterable[int],
    idle: Sequence[int],
) -> dict[str, list[dict[str, Any]]]:
    """Some invented tokens of each kind as {token, id, made_of}.

    `made_of` lists the texts of the student's tokens, or is "idle" for the mean of those, None if approximated.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for token in sorted([*composed, *approximated]):
        some = found.setdefault(kinds[token], [])
        if len(some) < NUM_EXAMPLES:
            pieces = composed.get(token)
            made_of: list[str] | str | None = None
            if pieces is not None:
                made_of = "idle" if pieces == idle else [spelled_out(ours, piece) for piece in pieces]
            some.append({"token": spelled_out(theirs, token), "id": token, "made_of": made_of})
    return found


def spelled_out(vocabulary: Vocabulary, token: int) -> str:
    """A token's text; bytes that are no whole character as \\xe6."""
    return shown(vocabulary.spelled[token])
