"""The tiny models and the corpora with which a choice is tested."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tasks.logits.rows import Row, make_row, write_rows
from tasks.modeling.tokenizer_files import load_tokenizer, tokenizer_digest
from tests.evaluate.conftest import corpus_folder, model_folder

__all__ = ["corpus_folder", "model_folder"]

ANSWERS = ("It is late.", "No, it is not.", "Ask the others, and then write it down.", "Blue")


@pytest.fixture(scope="session")
def instructions_folder(model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four held-out conversations in the vocabulary of `model_folder`, and a text, which is no conversation."""
    directory = tmp_path_factory.mktemp("instructions")
    tokenizer = load_tokenizer(model_folder(0))
    rows: list[Row] = []
    for number, answer in enumerate(ANSWERS):
        asked = tokenizer.encode(f"<|im_start|>user\nQuestion {number}<|im_end|>\n<|im_start|>assistant\n")
        learnt = tokenizer.encode(f"{answer}<|im_end|>")
        mask = np.array([0] * len(asked) + [1] * len(learnt))
        rows.append(make_row([*asked, *learnt], mask, answer, "chat", "test", f"chat-{number}"))
    ids = tokenizer.encode("a text beside them")
    rows.insert(1, make_row(ids, np.ones(len(ids)), "a text beside them", "text", "test", "text"))
    write_rows(directory / "heldout.parquet", rows)
    (directory / "corpus.json").write_text(json.dumps({"tokenizer_digest": tokenizer_digest(tokenizer)}))
    return directory
