"""Which of ten words follows? Cloze items of held-out texts, in the manner of LAMBADA with choices. No harness.

An item is a place in a text where a whole word begins, what stands before it, and as many words as there are choices:
the one that stands there and others that stand at places of other documents. A model answers with the likeliest. It
needs no download, tells small models apart long before they answer questions, and compares models of different
vocabularies.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.artifacts.errors import BadInputError
from tasks.benchmarks.declare import ClozeTasks

CLUSTER = "document"
"""Items of one document are not independent."""
NUM_COMMON = 100
"""The commonest words of the texts (the, is, with, …) are nobody's answer: any model knows where they go."""
_WORD = re.compile(r"(?<=[A-Za-z,;:)] )[A-Za-z]{3,}(?=[ .,;:)\n])")
_SPACE = re.compile(r"\s")


@dataclass(frozen=True)
class Text:
    """A held-out text, or a piece of one."""

    document: str
    """The same for all pieces of a document."""
    text: str


@dataclass(frozen=True)
class _Place:
    document: str
    context: str
    word: str


def cloze_items(tasks: ClozeTasks, texts: Sequence[Text]) -> list[dict[str, Any]]:
    """As many as the recipe says, drawn by its seed from all places in the texts: the document, the context, the
    choices, and which of them is the answer.

    Raises:
        BadInputError: the texts have too few places or different words.
    """
    places = [place for text in texts for place in _places(text, tasks.context_chars)]
    common = {word for word, _ in Counter(place.word for place in places).most_common(NUM_COMMON)}
    places = [place for place in places if place.word not in common]
    documents = {place.document for place in places}
    fewest = min((len({place.word for place in places if place.document != each}) for each in documents), default=0)
    if len(places) < tasks.items or fewest < 2 * tasks.choices:
        raise BadInputError(
            f"the held-out texts have {len(places)} places for cloze items and at least {fewest} different words "
            f"outside of each document, and {tasks.items} items of {tasks.choices} choices need as many places and "
            f"{2 * tasks.choices} words; lower items or choices, or raise max_documents or the corpus' "
            f"heldout_fraction"
        )
    draw = random.Random(tasks.seed)
    # In the order of the texts: neighbours share their context's beginning.
    chosen = [places[index] for index in sorted(draw.sample(range(len(places)), tasks.items))]
    return [_item(place, places, tasks.choices, draw) for place in chosen]


def _item(place: _Place, places: Sequence[_Place], num_choices: int, draw: random.Random) -> dict[str, Any]:
    words = {place.word: None}
    # Drawn from places, so that a wrong word is as common as a right one.
    while len(words) < num_choices:
        other = draw.choice(places)
        if other.document != place.document:
            words[other.word] = None
    choices = list(words)
    draw.shuffle(choices)
    return {
        CLUSTER: place.document,
        "context": place.context,
        "choices": choices,
        "answer": choices.index(place.word),
    }


def _places(text: Text, context_chars: int) -> list[_Place]:
    """Words with enough text before them; a context begins at a word."""
    places = []
    for found in _WORD.finditer(text.text):
        begin = found.start() - context_chars
        if begin < 0:
            continue
        space = _SPACE.search(text.text, begin, found.start() - 1)
        if space is not None:
            # The harness puts the space between context and choice.
            context = text.text[space.end() : found.start() - 1]
            places.append(_Place(text.document, context, found.group()))
    return places
