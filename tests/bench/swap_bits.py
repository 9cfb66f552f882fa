"""Bits per byte of a step's model on the measured texts of each kind, kept beside the store."""

from __future__ import annotations

import hashlib
import json
from functools import partial

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tasks.modeling.document_bits import document_bits
from tasks.runtime.declare import Step
from tests.bench.rows_surgery import KINDS
from tests.bench.swap_steps import FOLDER, make, measured_model, write_once
from tests.bench.swap_texts import measured_texts

WINDOW_TOKENS = 1024
BATCH_SIZE = 4


def bits_of(step: Step) -> dict[str, float]:
    """By kind. The model is made and measured on the first call."""
    made = make(step)
    file = FOLDER / "bits" / f"{made.ref.key[:16]}-{made.ref.digest[:16]}-{_texts_digest()}.json"
    if not file.is_file():
        write_once(file, json.dumps(measured_model(step, _measure)))
        print(f"  {step.label} measured", flush=True)
    found: dict[str, float] = json.loads(file.read_text())
    return found


def _measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    texts = measured_texts()
    count = partial(document_bits, model, tokenizer, window_tokens=WINDOW_TOKENS, batch_size=BATCH_SIZE)
    found = {}
    for kind in KINDS:
        documents = count(texts[kind], after_batch=lambda: None)
        found[kind] = sum(each.bits for each in documents) / sum(each.num_bytes for each in documents)
    return found


def _texts_digest() -> str:
    texts = [text.text for kind in KINDS for text in measured_texts()[kind]]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:8]
