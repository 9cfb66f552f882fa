"""A dump's own parts on the bench's teachers, without a pipeline: a stage's job over a committed teacher and corpus."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.fingerprint import file_sha256, sha256_hex
from tasks.artifacts.manifest import InputRecord, Manifest, ObjectRecord, Provenance, digest_of
from tasks.artifacts.store import Store, open_store
from tasks.exercises.library_text import library_documents
from tasks.logits.rows import Row, make_row, write_rows
from tasks.modeling.model_files import load_causal_lm, save_causal_lm
from tasks.modeling.tokenizer_files import load_tokenizer, save_tokenizer, tokenizer_digest
from tasks.worker.spec import WorkerSpec
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


@dataclass(frozen=True)
class DumpInputs:
    """A store with a committed teacher and corpus, from which any number of dumps can be started."""

    store: Store
    folder: Path
    inputs: dict[str, InputRecord]

    def spec(self, recipe: dict[str, Any], runtime: dict[str, Any], directory: str) -> WorkerSpec:
        """A new launch of the dump whose artifact is `directory`."""
        attempt = uuid.uuid4().hex[:8]
        return WorkerSpec(
            stage="dump_logits",
            label="bench",
            key=sha256_hex(directory.encode()),
            attempt=attempt,
            store=self.store.uri,
            directory=directory,
            scratch=str(self.folder / "scratch" / attempt),
            input_cache=str(self.folder / "inputs"),
            recipe=recipe,
            runtime=runtime,
            inputs=self.inputs,
        )


def dump_inputs(folder: Path, teacher: Path, rows: dict[str, Sequence[Row]]) -> DumpInputs:
    """Commits both below `folder`. The teacher's files are linked, not copied."""
    store = open_store(str(folder / "store"))
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    for split, part in rows.items():
        write_rows(corpus / f"{split}.parquet", part)
    digest = tokenizer_digest(load_tokenizer(teacher))
    (corpus / "corpus.json").write_text(json.dumps({"tokenizer_digest": digest}))
    return DumpInputs(
        store, folder, {"teacher": _committed(store, "teacher", teacher), "corpus": _committed(store, "corpus", corpus)}
    )


def _committed(store: Store, role: str, directory: Path) -> InputRecord:
    artifact = Artifact(store, f"artifacts/models/{role}")
    objects = []
    for file in sorted(path for path in directory.iterdir() if path.is_file()):
        path = f"data/main-00000000/{file.name}"
        target = store.local_path(artifact.path(path))
        assert target is not None
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(file.resolve())
        objects.append(ObjectRecord(name=file.name, path=path, size=file.stat().st_size, sha256=file_sha256(file)))
    key = sha256_hex(role.encode())
    manifest = artifact.commit(
        Manifest(
            stage="models", version=1, label=role, key=key, digest=digest_of(tuple(objects)), recipe={}, inputs={},
            objects=tuple(objects), metrics={},
            provenance=Provenance(
                write_id=uuid.uuid4().hex, created="", seconds=0, attempts=1, flow_run=None, git_sha=None,
                git_dirty=None, hardware={}, versions={}, runtime={},
            ),
        )
    )  # fmt: skip
    return InputRecord(key=key, digest=manifest.digest, directory=artifact.directory)
