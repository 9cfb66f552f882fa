"""Exercises: the splits share no question, there are enough of them, and the answers are right."""

from __future__ import annotations

import hashlib

import pytest

from tasks.artifacts.errors import BadInputError
from tasks.exercises import DIFFICULTIES, KINDS, Exercise, generate, is_correct
from tasks.exercises.holdout import Message, conversation_text, is_heldout


def prompts(exercises: list[Exercise]) -> set[str]:
    return {exercise.prompt for exercise in exercises}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_and_difficulty_has_enough_questions_and_no_two_splits_share_one(kind: str) -> None:
    by_split: dict[str, set[str]] = {}
    for split, count in (("train", 2000), ("dev", 400), ("test", 400)):
        by_split[split] = set()
        for difficulty in DIFFICULTIES:
            found = prompts(generate(kind, split, count, seed=3, difficulty=difficulty))
            assert len(found) == count
            assert not found & by_split[split], "two difficulties share a question"
            by_split[split] |= found
    assert not by_split["train"] & by_split["test"]
    assert not by_split["train"] & by_split["dev"]
    assert not by_split["dev"] & by_split["test"]


def test_whole_small_spaces_never_leak_between_splits() -> None:
    """Another seed may draw any question of its split, and still none of another split."""
    train = prompts(generate("add", "train", 7000, seed=1, difficulty=1))
    assert not train & prompts(generate("add", "test", 800, seed=2, difficulty=1))


def test_asking_for_more_than_there_are_is_refused_with_the_number_there_is() -> None:
    with pytest.raises(BadInputError, match="add at difficulty 1 has fewer test exercises") as error:
        generate("add", "test", 5000, seed=0, difficulty=1)
    available = int(str(error.value).split()[-1])
    assert len(generate("add", "test", available, seed=0, difficulty=1)) == available


def test_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(BadInputError, match="reverse, repeat"):
        generate("poetry", "train", 1, seed=0)


def test_draws_are_the_same_in_every_process() -> None:
    drawn = [exercise.prompt for kind in KINDS for exercise in generate(kind, "dev", 30, seed=5)]
    assert hashlib.sha256("\n".join(drawn).encode()).hexdigest() == (
        "2df3e977dd6a724270e35e75de00beb7642f1cfd511095fce143b261ef1b7a2f"
    )


@pytest.mark.parametrize(
    ("kind", "answer_of"),
    [
        ("reverse", lambda prompt: " ".join(reversed(prompt.removeprefix("Reverse: ").split()))),
        ("sort", lambda prompt: " ".join(sorted(prompt.removeprefix("Sort: ").split()))),
        ("repeat", lambda prompt: " ".join(prompt[16:].split() * int(prompt[7]))),
        ("successor", lambda prompt: " ".join(chr((ord(x) - 96) % 26 + 97) for x in prompt[14:].split())),
        ("swap", lambda prompt: " ".join(prompt[12:].split()[i ^ 1] for i in range(len(prompt[12:].split())))),
        ("add", lambda prompt: " ".join(str(int(x) + int(prompt[4])) for x in prompt.split(": ")[1].split())),
    ],
)
def test_answers_are_right_by_an_independent_rule(kind: str, answer_of) -> None:
    for exercise in generate(kind, "test", 60, seed=0):
        assert exercise.answer == answer_of(exercise.prompt)


def test_judging_ignores_white_space_and_nothing_else() -> None:
    exercise = Exercise("reverse", "Reverse: a b", "b a", 1)
    assert is_correct(exercise, " b  a\n")
    assert not is_correct(exercise, "b a.")
    assert not is_correct(exercise, "ba")
    assert not is_correct(exercise, "b a a")
    assert not is_correct(exercise, "")


def test_a_smaller_heldout_share_is_inside_a_larger_one() -> None:
    documents = [conversation_text([Message("user", str(number))]) for number in range(2000)]
    small = {text for text in documents if is_heldout(text, 0.05, 0)}
    large = {text for text in documents if is_heldout(text, 0.2, 0)}
    assert small < large
    assert 50 < len(small) < 150
    assert 320 < len(large) < 480
    assert {text for text in documents if is_heldout(text, 0.05, 1)} != small
