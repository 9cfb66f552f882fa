"""A dump's own parts on the bench's teachers, without a pipeline: a stage's job over a committed teacher and corpus."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks.artifacts.fingerprint import sha256_hex
from tasks.artifacts.store import open_store
from tasks.exercises.library_text import library_documents
from tasks.logits.rows import Row, make_row, write_rows
from tasks.modeling.model_files import load_causal_lm, save_causal_lm
from tasks.modeling.tokenizer_files import load_tokenizer, save_tokenizer, tokenizer_digest
from tests.bench.jobs import JobInputs, commit_folder
from tests.bench.paths import BENCH
from tests.bench.supports import TOP_64
from tests.bench.teachers import teacher_directory

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def recipe_of(dtype: str, *, prior_tokens: int, rows_per_shard: int) -> dict[str, Any]:
    """The default support, without temperatures; `dtype` is "fp32" or "bf16"."""
    return {
        "teacher": {"dtype": DTYPES[dtype]},
        "support": TOP_64,
        "prior_tokens": prior_tokens,
        "rows_per_shard": rows_per_shard,
        "splits": ["train"],
    }


def runtime_of(**changes: int) -> dict[str, Any]:
    """One thread on the CPU."""
    return {"device": "cpu", "threads": 1, **changes}


def teacher_in(vocabulary: str, dtype: str) -> Path:
    """The teacher's directory with its weights in this dtype ("fp32" or "bf16"), as a checkpoint would have them."""
    source = teacher_directory(vocabulary)
    if dtype == "fp32":
        return source
    target = BENCH / f"teacher-{vocabulary}-{dtype}"
    if not (target / "tokenizer.json").is_file():
        save_causal_lm(load_causal_lm(source, dtype=torch.float32), target, dtype=torch.bfloat16)
        save_tokenizer(load_tokenizer(source), target)
    return target


def corpus_rows(teacher: Path, num_tokens: int, max_tokens: int, min_characters: int = 0) -> list[Row]:
    """Documents of Python's documentation in a teacher's tokens, each cut at `max_tokens`, until there are enough."""
    tokenizer = load_tokenizer(teacher).backend_tokenizer
    rows: list[Row] = []
    seen: set[str] = set()
    total = 0
    for text in library_documents():
        if len(text) < min_characters:
            continue
        ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids[:max_tokens], np.int32)
        mask = np.ones(len(ids), np.uint8)
        mask[0] = 0
        row = make_row(ids, mask, text, "text", "library", sha256_hex(text.encode()))
        if row.row_id in seen:
            continue
        seen.add(row.row_id)
        rows.append(row)
        total += len(ids)
        if total >= num_tokens:
            break
    return rows


def dump_inputs(folder: Path, teacher: Path, rows: dict[str, Sequence[Row]]) -> JobInputs:
    """Commits both below `folder`. The teacher's files are linked, not copied."""
    store = open_store(str(folder / "store"))
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    for split, part in rows.items():
        write_rows(corpus / f"{split}.parquet", part)
    digest = tokenizer_digest(load_tokenizer(teacher))
    (corpus / "corpus.json").write_text(json.dumps({"tokenizer_digest": digest}))
    inputs = {"teacher": commit_folder(store, "teacher", teacher), "corpus": commit_folder(store, "corpus", corpus)}
    return JobInputs("dump_logits", store, folder, inputs)
