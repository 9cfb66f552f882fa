"""The task: which of ten words follows? Cloze items made of held-out documents, in the manner of LAMBADA with choices.

An item is a place in a row where a whole word begins, and ten words: the one that stands there and nine that stand at
places of other documents. A model answers with the likeliest after all of the row that comes before. Each word is one
token with the space before it, so that one forward pass of a row answers all of its items, and length has no say.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from tasks.logits.rows import Row

NUM_CHOICES = 10
MIN_CONTEXT = 24
"""Tokens before the word."""
NUM_COMMON = 100
"""The commonest words of the split (the, is, with, …) are nobody's answer: any model of English knows where they go."""
SEED = 0
_WORD = re.compile(r" [A-Za-z]{3,}")


@dataclass(frozen=True)
class Item:
    """One question."""

    row: int
    position: int
    """Of the word in the row; the prediction before it is judged."""
    choices: tuple[int, ...]
    """Token ids; the first one is right."""


def cloze_items(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> list[Item]:
    """All items of the rows, in their order."""
    places = list(_places(rows, tokenizer))
    counts = Counter(rows[row].input_ids[position].item() for row, position in places)
    common = {token for token, _ in counts.most_common(NUM_COMMON)}
    places = [place for place in places if rows[place[0]].input_ids[place[1]].item() not in common]
    if len({rows[row].input_ids[position].item() for row, position in places}) < 4 * NUM_CHOICES:
        raise ValueError(f"the rows have too few different words for {NUM_CHOICES} choices; take more documents")
    draw = random.Random(SEED)
    items = []
    for row, position in places:
        right = rows[row].input_ids[position].item()
        others: dict[int, None] = {}
        while len(others) < NUM_CHOICES - 1:
            other_row, other_position = draw.choice(places)
            word = rows[other_row].input_ids[other_position].item()
            if word != right and rows[other_row].document != rows[row].document:
                others[word] = None
        items.append(Item(row, position, (right, *others)))
    return items


def _places(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> list[tuple[int, int]]:
    """Where a token is a whole word: letters after a space, and no letter or apostrophe right after it."""
    texts = [str(tokenizer.decode([token])) for token in range(len(tokenizer))]
    is_word = [_WORD.fullmatch(text) is not None for text in texts]
    ends_word = [not text[:1].isalpha() and text[:1] not in "'_" for text in texts]
    places = []
    for index, row in enumerate(rows):
        ids = row.input_ids.tolist()
        places += [
            (index, position)
            for position in range(MIN_CONTEXT, len(ids) - 1)
            if is_word[ids[position]] and ends_word[ids[position + 1]]
        ]
    return places
