"""What every surgery ends with: the proof of its tokenizer, the comparison of before and after, its record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.modeling.tokenizer_files import assert_same_encoding, load_tokenizer, reloads_exactly, tokenizer_digest


def check_tokenizer(directory: Path, expected: PreTrainedTokenizerFast) -> None:
    """Both ways of loading must give the ids of `expected`, whatever model_type the directory has."""
    reloaded = load_tokenizer(directory)
    assert_same_encoding(expected, reloaded)
    if tokenizer_digest(reloaded) != tokenizer_digest(expected) or not reloads_exactly(directory):
        raise BadInputError("the tokenizer of the result is not the one asked for; report both tokenizer.json files")


def compared(before: dict[str, float], after: dict[str, float]) -> dict[str, dict[str, float]]:
    """The metrics that the gates judge: bits per byte before, after, and their ratio, by kind of text."""
    return {
        "bits_per_byte_before": before,
        "bits_per_byte_after": after,
        "bits_per_byte_ratio": {kind: after[kind] / before[kind] for kind in before},
    }


def write_record(directory: Path, record: dict[str, Any]) -> None:
    """surgery.json, for people and for later stages."""
    text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False)
    (directory / "surgery.json").write_text(text + "\n", encoding="utf-8")
