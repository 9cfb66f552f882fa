"""Short questions with one right answer, in six kinds and three difficulties each, made from an index.

A byte-level model of half a million weights learns most of them in a minute or two, and a smaller one learns fewer:
enough to see whether a distillation carries skills over. Nothing is stored; every kind is a numbered space of
questions, and the sha256 of a question decides its split, so that no question is ever in two of them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tasks.artifacts.errors import BadInputError

Split = Literal["train", "dev", "test"]
DIFFICULTIES = (1, 2, 3)
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Exercise:
    """A question and its only right answer."""

    kind: str
    prompt: str
    answer: str
    difficulty: int


class _Space(NamedTuple):
    """All questions of one kind and difficulty."""

    size: int
    at: Callable[[int], tuple[str, str]]
    """index in [0, size) -> (prompt, answer); different indices give different prompts."""


def _symbols(index: int, alphabet: str, length: int) -> tuple[int, list[str]]:
    """Takes `length` symbols off a mixed-radix index; returns what is left of it and the symbols."""
    symbols = []
    for _ in range(length):
        index, symbol = divmod(index, len(alphabet))
        symbols.append(alphabet[symbol])
    return index, symbols


def _reverse(length: int) -> _Space:
    def at(index: int) -> tuple[str, str]:
        _, letters = _symbols(index, _LETTERS, length)
        return f"Reverse: {' '.join(letters)}", " ".join(reversed(letters))

    return _Space(26**length, at)


def _sort(length: int) -> _Space:
    def at(index: int) -> tuple[str, str]:
        _, digits = _symbols(index, "0123456789", length)
        return f"Sort: {' '.join(digits)}", " ".join(sorted(digits))

    return _Space(10**length, at)


def _repeat(length: int) -> _Space:
    def at(index: int) -> tuple[str, str]:
        extra, letters = _symbols(index, _LETTERS, length)
        return f"Repeat {extra + 2} times: {' '.join(letters)}", " ".join(letters * (extra + 2))

    return _Space(2 * 26**length, at)


def _successor(length: int) -> _Space:
    following = dict(zip(_LETTERS, _LETTERS[1:] + _LETTERS[0], strict=True))

    def at(index: int) -> tuple[str, str]:
        _, letters = _symbols(index, _LETTERS, length)
        return f"Next letters: {' '.join(letters)}", " ".join(following[letter] for letter in letters)

    return _Space(26**length, at)


def _swap(length: int) -> _Space:
    def at(index: int) -> tuple[str, str]:
        _, letters = _symbols(index, _LETTERS, length)
        swapped = [letter for pair in zip(letters[1::2], letters[::2], strict=True) for letter in pair]
        return f"Swap pairs: {' '.join(letters)}", " ".join(swapped)

    return _Space(26**length, at)


def _add(length: int) -> _Space:
    def at(index: int) -> tuple[str, str]:
        less, digits = _symbols(index, "0123456789", length)
        return f"Add {less + 1} to each: {' '.join(digits)}", " ".join(str(int(digit) + less + 1) for digit in digits)

    return _Space(9 * 10**length, at)


_SPACES: dict[str, tuple[_Space, _Space, _Space]] = {
    "reverse": (_reverse(3), _reverse(4), _reverse(5)),
    "repeat": (_repeat(3), _repeat(4), _repeat(5)),
    "successor": (_successor(3), _successor(4), _successor(5)),
    "sort": (_sort(4), _sort(5), _sort(6)),
    "swap": (_swap(4), _swap(6), _swap(8)),
    "add": (_add(3), _add(4), _add(5)),
}
KINDS: tuple[str, ...] = tuple(_SPACES)


def split_of(prompt: str) -> Split:
    """Eight of ten questions are for training, one for development, one for the test."""
    bucket = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big") % 10
    return "test" if bucket == 0 else "dev" if bucket == 1 else "train"


def _shuffled(size: int, rng: random.Random) -> Iterator[int]:
    """The numbers below `size` in random order, each once, in memory proportional to how many are taken."""
    moved: dict[int, int] = {}
    for last in range(size - 1, -1, -1):
        pick = rng.randrange(last + 1)
        chosen = moved.get(pick, pick)
        moved[pick] = moved.pop(last, last)
        yield chosen


def _questions(kind: str, difficulty: int, split: Split, seed: int) -> Iterator[Exercise]:
    space = _SPACES[kind][difficulty - 1]
    for index in _shuffled(space.size, random.Random(f"{kind}/{difficulty}/{seed}")):
        prompt, answer = space.at(index)
        if split_of(prompt) == split:
            yield Exercise(kind, prompt, answer, difficulty)


def generate(kind: str, split: Split, count: int, seed: int, difficulty: int | None = None) -> list[Exercise]:
    """`count` different questions of a split; without a difficulty the three take turns.

    Raises:
        BadInputError: an unknown kind or difficulty, or fewer questions exist than are asked for.
    """
    if kind not in _SPACES:
        raise BadInputError(f"there is no kind of exercise {kind!r}; choose from {', '.join(KINDS)}")
    if difficulty is not None and difficulty not in DIFFICULTIES:
        raise BadInputError(f"{kind} has no difficulty {difficulty}; choose from 1, 2 and 3, or leave it out")
    wanted = DIFFICULTIES if difficulty is None else (difficulty,)
    streams = [_questions(kind, level, split, seed) for level in wanted]
    exercises: list[Exercise] = []
    while len(exercises) < count:
        exercise = next(streams[len(exercises) % len(streams)], None)
        if exercise is None:
            level = wanted[len(exercises) % len(streams)]
            raise BadInputError(
                f"{kind} at difficulty {level} has fewer {split} exercises than the {count} asked for; ask for at most "
                f"{len(exercises)}"
            )
        exercises.append(exercise)
    return exercises


def is_correct(exercise: Exercise, completion: str) -> bool:
    """Whether the completion is the answer and nothing else, white space aside."""
    return completion.split() == exercise.answer.split()
