"""What every surgery ends with: the proof of its tokenizer, the comparison of before and after, its record."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
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


def compared(before: Mapping[str, float], after: Mapping[str, float | None]) -> dict[str, dict[str, float | None]]:
    """The metrics that the gates judge: bits per byte before, after, and their ratio, by kind of text.

    Without a value after, because the logits are not finite, there is no ratio, and its gate fails.
    """
    ratio = {kind: None if (bits := after[kind]) is None else bits / before[kind] for kind in before}
    return {"bits_per_byte_before": dict(before), "bits_per_byte_after": dict(after), "bits_per_byte_ratio": ratio}


def finite(value: float) -> float | None:
    """A measure for a record; JSON has neither NaN nor infinity."""
    return value if math.isfinite(value) else None


def write_record(directory: Path, record: dict[str, Any]) -> None:
    """surgery.json, for people and for later stages."""
    text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False)
    (directory / "surgery.json").write_text(text + "\n", encoding="utf-8")
