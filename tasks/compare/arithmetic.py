"""Arithmetic as any tokenizer can be asked it: lines such as `12 + 30 = 42`, each answered after solved ones.

A model reads a page of true lines. From the fifth on each answer is an item: it counts when every token of it, the end
of the line included, is the model's likeliest token. That is what greedy decoding from the same context would write,
read off one forward pass; and an item costs its own tokens, not a prompt of examples besides.

Prompt and answer are encoded apart, so that no token spans both.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tasks.modeling.document_start import start_token
from tasks.modeling.predicted import Asked, predict
from tasks.modeling.tokenizer_files import real_vocab_size

NUM_SHOTS = 5
"""Lines at the start of a page that only show how it goes on."""
NUM_SCORED = 20
"""Items a page."""


@dataclass(frozen=True)
class Sum:
    """One line: `prompt` is given, `answer` is wanted, with its space before and its end of line."""

    prompt: str
    answer: str


def pages(num_items: int, seed: int) -> list[list[Sum]]:
    """Pages of NUM_SHOTS + at most NUM_SCORED lines, `num_items` of them scored in all; no line occurs twice."""
    numbers, seen = random.Random(seed), set()
    made: list[list[Sum]] = []
    left = num_items
    while left > 0:
        page: list[Sum] = []
        while len(page) < NUM_SHOTS + min(NUM_SCORED, left):
            line = _line(numbers)
            if line not in seen:
                seen.add(line)
                page.append(line)
        left -= len(page) - NUM_SHOTS
        made.append(page)
    return made


def _line(numbers: random.Random) -> Sum:
    operation = numbers.choice("+-*")
    if operation == "*":
        # A product of two-digit numbers is beyond the models that a swap is tried on, and tells nothing then.
        one, two = numbers.randrange(2, 100), numbers.randrange(2, 10)
        return Sum(f"{one} * {two} =", f" {one * two}\n")
    one, two = (numbers.randrange(10 ** numbers.randrange(1, 4)) for _ in range(2))
    if operation == "+":
        return Sum(f"{one} + {two} =", f" {one + two}\n")
    one, two = max(one, two), min(one, two)
    return Sum(f"{one} - {two} =", f" {one - two}\n")


def answered(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    asked: Sequence[Sequence[Sum]],
    *,
    batch_size: int,
    after_batch: Callable[[], None] = lambda: None,
) -> list[bool]:
    """Whether each scored line of each page is answered, in their order; padding rows are never an answer.

    Raises:
        BadInputError: the tokenizer has neither a BOS nor an end token.
    """
    start = start_token(model, tokenizer)
    encoded = [_encode(tokenizer, page, start) for page in asked]
    rows = [Asked(ids, [at for span in spans for at in range(*span)]) for ids, spans in encoded]
    predicted = predict(
        model, rows, num_tokens=real_vocab_size(tokenizer), batch_size=batch_size, after_batch=after_batch
    )
    right: list[bool] = []
    for (ids, spans), of_page in zip(encoded, predicted, strict=True):
        likeliest = iter(of_page.likeliest)
        right += [[next(likeliest) for _ in range(begin, end)] == ids[begin:end] for begin, end in spans]
    return right


def _encode(
    tokenizer: PreTrainedTokenizerFast, page: Sequence[Sum], start: int
) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids of a page, and where in them the answers stand that are scored."""
    ids, spans = [start], []
    for number, line in enumerate(page):
        ids += tokenizer.encode(line.prompt, add_special_tokens=False)
        begin = len(ids)
        ids += tokenizer.encode(line.answer, add_special_tokens=False)
        if number >= NUM_SHOTS:
            spans.append((begin, len(ids)))
    return ids, spans
