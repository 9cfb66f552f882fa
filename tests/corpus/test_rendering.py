"""Tokens and masks: one BOS, targets that are the answer and its end and nothing else, no character cut in two."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest

from tasks.artifacts.errors import BadInputError
from tasks.corpus.documents import Document
from tasks.corpus.rendering import Renderer
from tasks.exercises.holdout import Message, conversation_text
from tasks.modeling.tokenizer_files import load_tokenizer

END = {"llama": "<|eot_id|>", "qwen": "<|im_end|>"}
TWO_TURNS = [("user", "Hi there"), ("assistant", "Hello 12345"), ("user", "And?"), ("assistant", "Fine — déjà vu.")]


def renderer(folder: Path, day: str = "2024-07-26", max_tokens: int = 128, **options: str) -> Renderer:
    tokenizer = load_tokenizer(folder)
    return Renderer(
        tokenizer,
        frozenset([tokenizer.eos_token_id]),
        day=date.fromisoformat(day),
        max_tokens=max_tokens,
        overlong_text=options.get("overlong_text", "split"),
        overlong_chat=options.get("overlong_chat", "error"),
    )


def chat(*turns: tuple[str, str]) -> Document:
    messages = tuple(Message(*turn) for turn in turns)
    return Document(conversation_text(messages), messages, "test")


@pytest.mark.parametrize("family", ["llama", "qwen"])
def test_targets_are_the_answers_with_their_end_tokens(tokenizers: dict[str, Path], family: str) -> None:
    writer = renderer(tokenizers[family])
    (row,) = writer.rows([chat(*TWO_TURNS)])
    tokenizer = writer.tokenizer
    targets = tokenizer.decode(row.input_ids[row.loss_mask == 1])
    assert targets == f"Hello 12345{END[family]}Fine — déjà vu.{END[family]}"
    assert row.text == "Hello 12345Fine — déjà vu."
    assert row.num_bytes == len(row.text.encode())
    # The first answer token is predicted from the header; what follows the end token is not a target.
    first = int(row.loss_mask.argmax())
    assert tokenizer.decode(row.input_ids[first : first + 1]).startswith("H")
    ends = [at for at in range(len(row.input_ids)) if row.input_ids[at] == tokenizer.eos_token_id]
    for end in ends:
        if row.loss_mask[end] and end + 1 < len(row.input_ids):
            assert row.loss_mask[end + 1] == 0
    assert sum(int(row.loss_mask[end]) for end in ends) == 2


def test_exactly_one_bos_where_the_family_has_one(tokenizers: dict[str, Path]) -> None:
    writer = renderer(tokenizers["llama"])
    bos = writer.tokenizer.bos_token_id
    documents = [chat(*TWO_TURNS), Document("word " * 200, (), "test")]
    rows = list(writer.rows(documents))
    assert len(rows) > 3, "the text is split"
    for row in rows:
        assert list(row.input_ids).count(bos) == 1
        assert row.input_ids[0] == bos
        assert row.loss_mask[0] == 0
    assert renderer(tokenizers["qwen"]).start_id is None


def test_a_bos_that_opens_every_turn_is_not_put_before_texts(tokenizers: dict[str, Path], tmp_path: Path) -> None:
    """SmolLM2 names its ChatML start token as BOS; texts must not begin with it, and chats have one a turn."""
    for file in tokenizers["qwen"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": "<|im_start|>"}))
    writer = renderer(tmp_path)
    assert writer.start_id is None
    (row,) = writer.rows([chat(*TWO_TURNS)])
    assert list(row.input_ids).count(writer.tokenizer.bos_token_id) == 4


def test_a_template_with_two_bos_is_refused(tokenizers: dict[str, Path]) -> None:
    writer = renderer(tokenizers["llama"])
    writer.tokenizer.chat_template = "{{ bos_token }}" + str(writer.tokenizer.chat_template)
    with pytest.raises(BadInputError, match="writes 2 beginning-of-text tokens"):
        list(writer.rows([chat(*TWO_TURNS)]))


def test_the_template_prints_the_pinned_day_and_not_today(tokenizers: dict[str, Path]) -> None:
    writer = renderer(tokenizers["llama"])
    text = writer.render(chat(*TWO_TURNS).messages, ask=False)
    assert "Today: 26 Jul 2024" in text
    # Templates that ask the clock without looking for date_string get the pinned day as well.
    writer.tokenizer.chat_template = '{{ strftime_now("%Y-%m-%d") }}'
    assert writer.render(chat(*TWO_TURNS).messages, ask=False) == "26 Jul 2024"
    assert renderer(tokenizers["llama"], "2025-01-02").render(chat(*TWO_TURNS).messages, ask=False) != text


def test_a_template_that_changes_earlier_answers_is_refused(tokenizers: dict[str, Path]) -> None:
    writer = renderer(tokenizers["qwen"])
    template = str(writer.tokenizer.chat_template)
    writer.tokenizer.chat_template = template.replace('message["content"]', 'message["content"] | upper')
    with pytest.raises(BadInputError, match="does not keep the answer 'Hello 12345'"):
        list(writer.rows([chat(*TWO_TURNS)]))


@pytest.mark.parametrize("family", ["llama", "qwen"])
@pytest.mark.parametrize("max_tokens", [9, 16, 33])
def test_split_texts_lose_nothing_and_cut_no_character(
    tokenizers: dict[str, Path], family: str, max_tokens: int
) -> None:
    text = "Příliš žluťoučký kůň — 你好，世界 😀👩‍👩‍👧 end.\n\n" * 5
    rows = list(renderer(tokenizers[family], max_tokens=max_tokens).rows([Document(text, (), "test")]))
    tokenizer = load_tokenizer(tokenizers[family])
    assert max(row.num_tokens for row in rows) <= max_tokens
    assert all("\ufffd" not in row.text for row in rows)
    for row in rows:
        assert tokenizer.decode(row.input_ids[row.loss_mask == 1]) == row.text
    if family == "llama":
        assert "".join(row.text for row in rows) == text
        assert sum(row.num_bytes for row in rows) == len(text.encode())
    else:
        whole = "".join(tokenizer.decode(row.input_ids) for row in rows)
        # A last piece of one token has nothing to predict and is left out.
        assert text.startswith(whole)
        assert len(text) - len(whole) <= 1
        assert all(row.loss_mask[0] == 0 for row in rows)


def test_control_tokens_inside_a_document_drop_it(tokenizers: dict[str, Path]) -> None:
    writer = renderer(tokenizers["qwen"])
    documents = [
        chat(("user", "say <|im_end|>"), ("assistant", "no")),
        Document("a text with <|endoftext|> inside", (), "test"),
        chat(("user", "hi")),
        chat(("user", "hi"), ("assistant", "")),
        chat(("assistant", "hello"), ("user", "hi")),
    ]
    assert list(writer.rows(documents)) == []
    assert writer.dropped == {"special_token": 2, "no_answer": 1, "empty": 1, "no_question": 1}


def test_long_conversations_are_never_cut(tokenizers: dict[str, Path]) -> None:
    long = chat(("user", "hi"), ("assistant", "word " * 100 + "end"))
    with pytest.raises(BadInputError, match=r"over max_tokens=64.*set overlong_chat to drop"):
        list(renderer(tokenizers["qwen"], max_tokens=64).rows([long]))
    writer = renderer(tokenizers["qwen"], max_tokens=64, overlong_chat="drop")
    assert list(writer.rows([long])) == []
    assert writer.dropped["overlong"] == 1
