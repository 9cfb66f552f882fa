"""Arithmetic: what is asked, and that an item counts exactly when all its tokens are the likeliest ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tasks.compare import arithmetic
from tasks.compare.arithmetic import NUM_SCORED, NUM_SHOTS, answered, pages
from tasks.modeling.model_files import load_causal_lm
from tasks.modeling.tokenizer_files import load_tokenizer, real_vocab_size

ModelFolder = Callable[..., Path]


def test_lines_are_true_and_each_is_asked_once() -> None:
    made = pages(50, seed=0)
    assert [len(page) for page in made] == [NUM_SHOTS + NUM_SCORED, NUM_SHOTS + NUM_SCORED, NUM_SHOTS + 10]
    lines = [line for page in made for line in page]
    assert len({line.prompt for line in lines}) == len(lines)
    for line in lines:
        assert line.answer == f" {eval(line.prompt.removesuffix('='))}\n"  # its own digits and one sign
    assert {line.prompt.split()[1] for line in lines} == {"+", "-", "*"}
    assert pages(50, seed=0) == made
    assert pages(50, seed=1) != made
    # Two models measured under two versions of Python must have been asked the same.
    assert [line.prompt + line.answer for line in made[0][:3]] == ["65 - 5 = 60\n", "45 - 38 = 7\n", "29 * 4 = 116\n"]


class _Knowing:
    """Stands for a model whose likeliest next token is the one that comes, but for those at some positions."""

    def __init__(self, num_rows: int, wrong: set[tuple[int, int]]) -> None:
        self.num_rows, self.wrong = num_rows, wrong
        self.device = torch.device("cpu")
        self.seen = 0

    def __call__(self, input_ids: torch.Tensor, **_: Any) -> Any:
        next_BT = torch.roll(input_ids, -1, dims=1)
        logits_BTV = torch.nn.functional.one_hot(next_BT, self.num_rows).float()
        # A padding row that is likelier than all: it must never be taken for an answer.
        logits_BTV[..., -1] = 9.0
        for page, position in self.wrong:
            if self.seen <= page < self.seen + len(input_ids):
                logits_BTV[page - self.seen, position - 1] = 0
                logits_BTV[page - self.seen, position - 1, 0] = 1
        self.seen += len(input_ids)
        return SimpleNamespace(logits=logits_BTV)


def _positions(tokenizer: PreTrainedTokenizerFast, page: list[Any]) -> list[tuple[int, int]]:
    """Where the answers of a page's scored lines stand, told from the text alone: one token is a byte."""
    text, spans = "", []
    for line in page:
        text += line.prompt
        begin = 1 + len(text)
        text += line.answer
        spans.append((begin, 1 + len(text)))
    assert len(tokenizer.encode(text)) == len(text)
    return spans[NUM_SHOTS:]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_an_item_counts_when_every_token_of_its_answer_is_the_likeliest(
    model_folder: ModelFolder, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(model_folder(1))
    # Which token it is takes passes of its own, and this model counts the pages of its passes.
    monkeypatch.setattr(arithmetic, "start_token", lambda _model, tokenizer: tokenizer.eos_token_id)
    asked = pages(45, seed=3)
    num_rows = real_vocab_size(tokenizer) + 5
    assert all(answered(_Knowing(num_rows, set()), tokenizer, asked, batch_size=batch_size))  # type: ignore[arg-type]

    first, second, last = (_positions(tokenizer, page) for page in asked)
    # First and last token of an answer (its space, its end of line), and one of the next prompt, which is not asked.
    wrong = {(0, first[0][0]), (1, second[3][1] - 1), (1, second[7][1]), (2, last[4][0] + 1)}
    right = answered(_Knowing(num_rows, wrong), tokenizer, asked, batch_size=batch_size)  # type: ignore[arg-type]
    assert [index for index, each in enumerate(right) if not each] == [0, NUM_SCORED + 3, 2 * NUM_SCORED + 4]


def test_two_vocabularies_are_asked_the_same_items(model_folder: ModelFolder) -> None:
    for seed, merges in ((1, 0), (3, 40)):
        folder = model_folder(seed, merges)
        model = load_causal_lm(folder, dtype=torch.float32)
        assert len(answered(model, load_tokenizer(folder), pages(22, seed=0), batch_size=2)) == 22
