"""Cloze items of held-out texts: what an item is, and how models are judged on them."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tasks.artifacts.errors import BadInputError
from tasks.benchmarks.cloze_items import NUM_COMMON, Text
from tasks.benchmarks.declare import ClozeTasks
from tasks.benchmarks.loading import load_tasks

SYLLABLES = ("ba", "ce", "di", "fo", "gu", "ly", "ma", "ne", "pi", "ro")
RARE = [a + b + c for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES]
COMMON = [f"qu{a}{b}" for a in SYLLABLES for b in SYLLABLES]
assert len(COMMON) == NUM_COMMON


def texts(num_documents: int = 6, words: int = 480, seed: int = 0) -> list[Text]:
    """Documents of words that are in no other one, between words that are common to all."""
    draw = random.Random(seed)
    rows = []
    for document in range(num_documents):
        own = RARE[document * 100 : document * 100 + 100]
        text = " ".join(draw.choice(COMMON if index % 4 else own) for index in range(words)) + "."
        rows.append(Text(f"{document}", text))
    return rows


def items(rows: list[Text], **changes: Any) -> list[dict[str, Any]]:
    given = {"type": "cloze", "items": 50, "context_chars": 100, **changes}
    [loaded] = load_tasks([ClozeTasks.model_validate(given)], 8, texts=rows)
    assert (loaded.name, loaded.metric, loaded.cluster, loaded.plain_text) == ("cloze", "acc", "document", True)
    return list(loaded.tasks["cloze"].eval_docs)


def test_an_item_is_a_word_its_text_and_words_of_other_documents() -> None:
    rows = texts()
    of = {row.document: row.text for row in rows}
    made = items(rows)
    assert len(made) == 50
    for item in made:
        word = item["choices"][item["answer"]]
        assert f" {item['context']} {word}" in of[item["document"]]
        assert 90 <= len(item["context"]) <= 100
        assert len(set(item["choices"])) == 10
        assert not set(item["choices"]) & set(COMMON)
        wrong = [choice for choice in item["choices"] if choice != word]
        assert not [choice for choice in wrong if choice in of[item["document"]].split()]
    assert len({item["answer"] for item in made}) == 10, "the right one has no place of its own"
    assert len({item["document"] for item in made}) == 6


def test_the_same_items_at_each_launch_and_others_by_another_seed() -> None:
    assert items(texts()) == items(texts())
    assert items(texts()) != items(texts(), seed=1)


@pytest.mark.parametrize(
    ("rows", "changes"),
    [
        pytest.param(texts(), {"items": 5000}, id="too few places"),
        pytest.param(texts(1), {}, id="one document"),
        pytest.param([], {}, id="no text"),
        pytest.param(texts(2, 120), {"choices": 26}, id="too few words"),
    ],
)
def test_texts_that_are_too_few_are_one_sentence(rows: list[Text], changes: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match=r"places for cloze items .* lower items or choices"):
        items(rows, **changes)
