import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tasks.artifacts.errors import BadInputError
from tasks.logits.rows import Row, read_rows
from tasks.modeling.document_bits import document_bits
from tasks.modeling.document_start import start_token
from tasks.modeling.model_files import load_causal_lm
from tasks.modeling.tokenizer_files import load_tokenizer

ModelFolder = Callable[..., Path]


def measure(directory: Path, rows: list[Row], window_tokens: int = 2048, batch_size: int = 4) -> list[float]:
    model = load_causal_lm(directory, dtype=torch.float64)
    tokenizer = load_tokenizer(directory)
    documents = document_bits(
        model, tokenizer, rows, window_tokens=window_tokens, batch_size=batch_size, after_batch=lambda: None
    )
    assert [(document.document, document.num_bytes) for document in documents] == [
        (row.document, len(row.text.encode())) for row in rows
    ]
    return [document.bits for document in documents]


def by_hand(directory: Path, text: str, window: int) -> tuple[float, int]:
    """Token after token, each from its own prefix: (bits, tokens)."""
    model = load_causal_lm(directory, dtype=torch.float64)
    tokenizer = load_tokenizer(directory)
    real = max(tokenizer.get_vocab().values()) + 1
    ids = [start_token(model, tokenizer), *tokenizer.encode(text, add_special_tokens=False)]
    bits = 0.0
    with torch.no_grad():
        for target in range(1, len(ids)):
            first = (target - 1) // window * window
            logits = model(torch.tensor([ids[first:target]])).logits[0, -1, :real]
            bits -= float(torch.log_softmax(logits, -1)[ids[target]]) / math.log(2)
    return bits, len(ids) - 1


@pytest.fixture
def rows(corpus_folder: Path) -> list[Row]:
    return [row for row in read_rows(corpus_folder / "heldout.parquet") if row.kind == "text"]


@pytest.mark.parametrize("num_merges", [0, 40])
def test_equals_the_chain_rule_token_by_token(model_folder: ModelFolder, rows: list[Row], num_merges: int) -> None:
    directory = model_folder(1, num_merges)
    measured = measure(directory, rows)
    expected = [by_hand(directory, row.text, 96) for row in rows]
    assert measured == pytest.approx([bits for bits, _ in expected], rel=1e-6)
    assert max(tokens for _, tokens in expected) > (96 if num_merges == 0 else 0)


def test_windows_predict_every_token_once(model_folder: ModelFolder, rows: list[Row]) -> None:
    for window in (7, 50):
        expected = [by_hand(model_folder(1), row.text, window)[0] for row in rows]
        assert measure(model_folder(1), rows, window_tokens=window) == pytest.approx(expected, rel=1e-6)


def test_batches_change_nothing(model_folder: ModelFolder, rows: list[Row]) -> None:
    one = measure(model_folder(1), rows, window_tokens=20, batch_size=1)
    assert measure(model_folder(1), rows, window_tokens=20, batch_size=64) == pytest.approx(one, rel=1e-6)


def test_a_uniform_model_costs_log2_of_the_real_vocabulary(model_folder: ModelFolder, rows: list[Row]) -> None:
    directory = model_folder(1)
    model = load_causal_lm(directory, dtype=torch.float32)
    torch.nn.init.zeros_(model.lm_head.weight)
    tokenizer = load_tokenizer(directory)
    documents = document_bits(model, tokenizer, rows, window_tokens=96, batch_size=2, after_batch=lambda: None)
    # One token a byte, 256 bytes and 3 special tokens; the 5 rows of padding are no choice.
    assert [each.bits / each.num_bytes for each in documents] == pytest.approx([math.log2(259)] * len(rows), rel=1e-5)


def test_special_tokens_written_out_in_a_text_are_text(model_folder: ModelFolder, rows: list[Row]) -> None:
    directory = model_folder(1)
    model = load_causal_lm(directory, dtype=torch.float32)
    torch.nn.init.zeros_(model.lm_head.weight)
    row = Row("0", rows[0].input_ids, rows[0].loss_mask, "say <|im_end|> now", 18, "text", "test")
    (document,) = document_bits(
        model, load_tokenizer(directory), [row], window_tokens=96, batch_size=1, after_batch=lambda: None
    )
    assert document.bits == pytest.approx(18 * math.log2(259), rel=1e-5)


def test_a_text_without_tokens_is_refused(model_folder: ModelFolder, rows: list[Row]) -> None:
    directory = model_folder(1)
    tokenizer = load_tokenizer(directory)
    tokenizer.unk_token = "e"  # as in a tokenizer that maps what it does not know to one id
    with pytest.raises(BadInputError, match="no tokens for a part"):
        document_bits(
            load_causal_lm(directory, dtype=torch.float32),
            tokenizer,
            rows,
            window_tokens=96,
            batch_size=1,
            after_batch=lambda: None,
        )
