"""The steps that judge a row alone."""

from __future__ import annotations

import random

import pytest

from tasks.artifacts.errors import BadInputError
from tasks.clean.filters import cut_off, language_judge, length_judge, refused
from tasks.clean.rows import Row
from tasks.clean.stage import Language, Length
from tasks.modeling.conversation import Turn

REFUSAL = "I’m sorry, but I can't help with that request."
ENGLISH = "The lease is renewed while the shard is written, and the next worker waits for its end."
GERMAN = "Der Vertrag wird erneuert, während das Stück geschrieben wird, und der nächste Arbeiter wartet so lange."


def row(*turns: str, system: str | None = None) -> Row:
    spoken = [Turn(("user", "assistant")[index % 2], turn) for index, turn in enumerate(turns)]
    return Row("x", tuple([Turn("system", system)] if system is not None else []) + tuple(spoken), b"")


def test_length_counts_answers_characters_and_turns() -> None:
    judge = length_judge(Length(min_answer_chars=2, max_chars=20, max_turns=4))
    assert judge(row("question", "ok")) is None
    assert judge(row("question", " a ")) == {"answer_chars": 1}
    assert judge(row("question", "\r\n\t")) == {"answer_chars": 0}
    assert judge(row("question", "ok", "q", "a")) == {"answer_chars": 1}
    assert judge(row("question")) == {"answer_chars": 0}
    assert judge(row("12345678", "123456789012")) is None
    assert judge(row("12345678", "1234567890123")) == {"chars": 21}
    assert judge(row("12345678", "1234567890", system="123")) == {"chars": 21}
    assert judge(row(*["q", "ok"] * 2, system="s")) is None
    assert judge(row(*["q", "ok"] * 3)) == {"turns": 6}
    unbounded = length_judge(Length(min_answer_chars=None, max_chars=None, max_turns=None))
    assert unbounded(row(*["q" * 50_000, ""] * 40)) is None


def test_a_refusal_anywhere_in_the_conversation_counts() -> None:
    assert refused(row("a", REFUSAL)) is not None
    assert refused(row("a", "b", "c", REFUSAL, "d", "e")) is not None
    assert refused(row(REFUSAL, "You are quoting a refusal.")) is None
    assert refused(row("Write an apology.", "I'm sorry that I missed your party.")) is None


@pytest.mark.parametrize(
    "answer",
    [
        "Here is the code:\n```python\nprint(1)\n",
        "First `x`, then\n~~~~\na\n~~~\n",
        "The three rivers that flow through the city are the Danube, the Isar,",
        "The library offers several ways to open a file, among them (",
        "To sum up, the most important reason for the decline of the empire was the",
        "A checkpoint that cannot be read is skipped, and the one before it is taken, which is a",
        "It depends on the size of the model, on the length of the text and",
    ],
)
def test_an_answer_that_ends_in_the_middle_is_seen(answer: str) -> None:
    assert cut_off(row("question", answer)) is not None
    assert cut_off(row("question", answer, "go on", "The end.")) is not None


@pytest.mark.parametrize(
    "answer",
    [
        "42",
        "c b a",
        "the",
        "The missing word is: of",
        "```python\nprint(1)\n```",
        "````md\n```\n````",
        "Use ```x``` within a line",
        "- milk\n- bread\n- eggs",
        "The result is $x = 4$",
        "Best regards,\nThe team",
        "Who did you give the book to?",
        "a b c z x y b c a b c a",
        "Turn the light off and the radio on",
        "def f(x):\n    return {\n        1: 2\n    }",
        "日本で一番高い山は富士山です",
        "",
    ],
)
def test_an_answer_without_a_full_stop_is_not_cut_off(answer: str) -> None:
    assert cut_off(row("question", answer)) is None


def test_language_is_that_of_the_text_outside_code() -> None:
    judge = language_judge(Language(allowed=("en",)))
    assert judge(row(ENGLISH, ENGLISH)) is None
    assert judge(row(GERMAN, GERMAN))["language"] == "de"  # type: ignore[index]
    block = f"```\n{GERMAN}\n{GERMAN}\n```"
    assert judge(row(ENGLISH, f"{ENGLISH}\n{block}\n")) is None
    # Too few letters to tell.
    assert judge(row("Guten Tag", "42")) is None
    assert judge(row(ENGLISH, ENGLISH, system=GERMAN * 4)) is None
    both = language_judge(Language(allowed=("en", "de")))
    assert both(row(GERMAN, GERMAN)) is None
    with pytest.raises(BadInputError, match="has xx, which py3langid does not know"):
        language_judge(Language(allowed=("en", "xx")))


def test_the_order_of_rows_does_not_matter_to_them() -> None:
    rows = [row("q", REFUSAL), row("q", ""), row(GERMAN, GERMAN), row(ENGLISH, ENGLISH), row("q", "```\nx")]
    judges = [length_judge(Length()), refused, cut_off, language_judge(Language(allowed=("en",)))]
    first = {id(each): [judge(each) for judge in judges] for each in rows}
    random.Random(0).shuffle(rows)
    assert {id(each): [judge(each) for judge in judges] for each in rows} == first
