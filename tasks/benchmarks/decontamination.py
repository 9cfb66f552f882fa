"""Conversations and texts that hold text of an evaluation: runs of 13 words, and shorter items whole.

The rule is that of GPT-3 (Brown et al. 2020, appendix C): words without case and punctuation, runs of 13, and for
shorter texts no fewer than 8, because fewer coincide by chance. Under 8 words only a prompt counts, and only where it
is a whole user turn: "Sort: 4 1 3" asked word for word is the item itself, an answer such as "yes" is nobody's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from tasks.artifacts.errors import BadInputError
from tasks.benchmarks.declare import ExerciseTasks
from tasks.benchmarks.evaluation_sets import Decontamination, HarnessSet, set_name
from tasks.benchmarks.evaluation_texts import Item, items_of
from tasks.benchmarks.words import Hashes, run_hashes, words


@dataclass
class SetCount:
    """What is told of one evaluation set."""

    items: int = 0
    rows_removed: int = 0
    sha256: str = ""
    """Of all words of its texts: another release of the data has another."""


class Spoken(Protocol):
    """A turn of a conversation."""

    @property
    def role(self) -> str | None: ...

    @property
    def content(self) -> str: ...


@dataclass(frozen=True)
class _Text:
    """One text of an item."""

    evaluation: str
    item: str
    words: tuple[str, ...]


class _Short(NamedTuple):
    """Where a text stands that is shorter than a run."""

    item: str
    question: tuple[str, ...]
    """The whole one; an item may be in several tasks of a set."""
    is_prompt: bool


@dataclass
class _Runs:
    """All runs of one length: sorted hashes, and for each the text and the place where it stands first."""

    hashes: Hashes
    texts: np.ndarray
    places: np.ndarray


@dataclass
class EvaluationIndex:
    """The items of all sets. `add` each, then `close`, then look conversations up."""

    settings: Decontamination
    counts: dict[str, SetCount] = field(default_factory=dict)
    _texts: list[_Text] = field(default_factory=list)
    _questions: dict[tuple[str, ...], _Text] = field(default_factory=dict)
    _runs: dict[int, _Runs] = field(default_factory=dict)

    def add(self, evaluation: str, items: Iterable[Item]) -> None:
        """Takes the items of a set in."""
        short: dict[tuple[str, ...], list[_Short]] = {}
        count = self.counts.setdefault(evaluation, SetCount())
        digest = hashlib.sha256(count.sha256.encode())
        for item in items:
            count.items += 1
            for is_prompt, texts in ((True, item.prompts), (False, item.answers)):
                for text in texts:
                    found = tuple(words(text))
                    digest.update("\x1f".join(found).encode("utf-8", "surrogatepass") + b"\x1e")
                    if len(found) >= self.settings.ngram_words:
                        self._texts.append(_Text(evaluation, item.name, found))
                    elif found:
                        short.setdefault(found, []).append(_Short(item.name, item.prompts[:1], is_prompt))
        count.sha256 = digest.hexdigest()
        for found, uses in short.items():
            text_of_first = _Text(evaluation, uses[0].item, found)
            if len(found) < self.settings.min_whole_words:
                if any(use.is_prompt for use in uses):
                    self._questions.setdefault(found, text_of_first)
            elif len({use.question for use in uses}) == 1:
                # In several questions it is a phrase ("Which of these statements is true?") and identifies none.
                self._texts.append(text_of_first)

    def close(self) -> None:
        """Sorts what was added."""
        lengths = range(min(self.settings.min_whole_words, self.settings.ngram_words), self.settings.ngram_words + 1)
        for length in lengths:
            whole = length < self.settings.ngram_words
            numbers = [
                number
                for number, text in enumerate(self._texts)
                if (len(text.words) == length if whole else len(text.words) >= length)
            ]
            parts = [run_hashes(self._texts[number].words, length) for number in numbers]
            if not parts:
                continue
            hashes, first = np.unique(np.concatenate(parts), return_index=True)
            texts = np.repeat(np.array(numbers), [len(part) for part in parts])
            places = np.concatenate([np.arange(len(part)) for part in parts])
            self._runs[length] = _Runs(hashes, texts[first], places[first])

    def judge(self, turns: Iterable[Spoken]) -> dict[str, str] | None:
        """The first item that a turn shares text with; {evaluation, item, words}, the words that are shared."""
        for turn in turns:
            found = words(turn.content)
            question = self._questions.get(tuple(found)) if turn.role == "user" else None
            match = (question, list(question.words)) if question is not None else self._shared(found)
            if match is not None:
                text, shared = match
                self.counts[text.evaluation].rows_removed += 1
                return {"evaluation": text.evaluation, "item": text.item, "words": " ".join(shared)}
        return None

    def _shared(self, found: Sequence[str]) -> tuple[_Text, list[str]] | None:
        for length in sorted(self._runs, reverse=True):
            runs = self._runs[length]
            own = run_hashes(found, length)
            at = np.minimum(np.searchsorted(runs.hashes, own), len(runs.hashes) - 1)
            for place in np.flatnonzero(runs.hashes[at] == own).tolist():
                text = self._texts[int(runs.texts[at[place]])]
                start = int(runs.places[at[place]])
                shared = list(found[place : place + length])
                # Hashes find, words decide.
                if tuple(shared) == text.words[start : start + length]:
                    return text, shared
        return None


def read_index(
    settings: Decontamination,
    evaluations: Iterable[ExerciseTasks | HarnessSet],
    left_out: Mapping[str, str],
    mirror: str | None,
    log: Callable[[str], None],
    where: str,
) -> EvaluationIndex:
    """The items of all sets but those that are left out, closed.

    Args:
        left_out: set → why it is not read.
        mirror: a folder with copies of the hub's data sets.
        log: called after each set; may raise to stop.
        where: the place of `left_out` in a profile, for errors.

    Raises:
        BadInputError: a set cannot be read.
    """
    index = EvaluationIndex(settings)
    for evaluation in evaluations:
        name = set_name(evaluation)
        if name in left_out:
            log(f"nothing is compared with {name}: {left_out[name]}")
            continue
        try:
            index.add(name, items_of(evaluation, mirror))
        except BadInputError as error:
            raise BadInputError(f"{error}; or say under {name!r} in {where} why nothing is compared with it") from error
        log(f"read {index.counts[name].items} items of {name}")
    index.close()
    return index
