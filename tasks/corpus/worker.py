"""Writes a corpus: documents in, train.parquet, heldout.parquet and corpus.json out. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from tasks.artifacts.errors import BadInputError
from tasks.corpus.decontamination import CONTAMINATED, Contamination
from tasks.corpus.documents import Document, load_documents
from tasks.corpus.rendering import Renderer
from tasks.corpus.stage import CorpusRecipe, DecontaminatedCorpusRecipe, recipe_of
from tasks.exercises.holdout import is_heldout
from tasks.logits.enough_to_choose import HELDOUT_CONVERSATIONS, HELDOUT_TEXTS
from tasks.logits.rows import Row, write_rows
from tasks.modeling.tokenizer_files import TOKENIZER_FILES, load_tokenizer, tokenizer_digest
from tasks.worker.job import InputArtifact, Job, worker_main

_BATCH_DOCUMENTS = 256


def run(job: Job) -> None:
    """Collects the documents, splits them, renders them and completes the artifact."""
    recipe = recipe_of(job.recipe)
    compared = Contamination(job, recipe) if isinstance(recipe, DecontaminatedCorpusRecipe) else None
    folder = _tokenizer_folder(job.input("tokenizer"), job.new_directory("tokenizer"))
    tokenizer = load_tokenizer(folder)
    renderer = Renderer(
        tokenizer,
        _end_ids(folder, tokenizer.eos_token_id),
        day=date.fromisoformat(recipe.template_date),
        max_tokens=recipe.max_tokens,
        overlong_text=recipe.overlong_text,
        overlong_chat=recipe.overlong_chat,
    )
    dropped: Counter[str] = renderer.dropped
    train, heldout = _split(job, recipe, compared, dropped)
    started = time.monotonic()
    seen: set[str] = set()
    # Held-out rows first: a piece of text that is in both splits is then missing from training.
    heldout_rows = _render(job, renderer, heldout, None, seen)
    train_rows = _render(job, renderer, train, recipe.max_rows, seen)
    if not train_rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) or "nothing dropped"
        raise BadInputError(
            f"the corpus has no training row ({len(train) + len(heldout)} documents; {reasons}); add sources, raise "
            f"max_tokens or lower heldout_fraction"
        )
    seconds = time.monotonic() - started
    target = job.new_directory("corpus")
    splits = {"train": train_rows, "heldout": heldout_rows}
    for name, rows in splits.items():
        write_rows(target / f"{name}.parquet", rows)
    totals = {name: _totals(rows) for name, rows in splits.items()}
    summary: dict[str, Any] = {
        "max_tokens": recipe.max_tokens,
        "splits": totals,
        "template_date": recipe.template_date,
        "template_sha256": renderer.template_sha256,
        "tokenizer_digest": tokenizer_digest(tokenizer),
    }
    told = {"decontamination": compared.summary()} if compared is not None else {}
    if compared is not None:
        summary["decontamination"] = {**compared.summary(), "examples": compared.examples()}
    (target / "corpus.json").write_text(json.dumps(summary, indent=2, sort_keys=True) + "\n")
    num_tokens = sum(total["num_tokens"] for total in totals.values())
    metrics: dict[str, Any] = {
        f"{split}_{name.removeprefix('num_')}": value
        for split, total in totals.items()
        for name, value in total.items()
    }
    job.complete(
        target,
        {
            **metrics,
            **told,
            "rows_by_source": {
                name: dict(sorted(Counter(row.source for row in rows).items())) for name, rows in splits.items()
            },
            HELDOUT_TEXTS: len({row.document for row in heldout_rows if row.kind == "text" and row.text}),
            HELDOUT_CONVERSATIONS: sum(row.kind == "chat" for row in heldout_rows),
            "dropped": dict(sorted(dropped.items())),
            "tokens_per_second": num_tokens / max(seconds, 1e-9),
        },
    )


def _tokenizer_folder(model: InputArtifact, folder: Path) -> Path:
    """The tokenizer's files alone: the weights of a large model stay where they are."""
    for name in (*TOKENIZER_FILES, "config.json", "generation_config.json"):
        if model.manifest.object(name) is not None:
            (folder / name).write_bytes(model.bytes(name))
    return folder


def _end_ids(folder: Path, eos: int | None) -> frozenset[int]:
    """Ids that may end a turn: those of generation_config.json and the tokenizer's own."""
    file = folder / "generation_config.json"
    ids = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    listed = ids if isinstance(ids, list) else [ids]
    return frozenset(int(token) for token in (*listed, eos) if token is not None)


def _split(
    job: Job, recipe: CorpusRecipe, compared: Contamination | None, dropped: Counter[str]
) -> tuple[list[Document], list[Document]]:
    """Training and held-out documents, each once, in an order that depends on their text and the seed."""
    instructions = None
    if "instructions" in job.spec.inputs:
        instructions = job.new_directory("instructions") / "instructions.jsonl"
        instructions.write_bytes(job.input("instructions").bytes("instructions.jsonl"))
    documents: dict[str, Document] = {}
    for source in recipe.sources:
        for document in load_documents(source, instructions):
            if document.content in documents:
                dropped["duplicate"] += 1
            documents.setdefault(document.content, document)
    kept = list(documents.values())
    if compared is not None:
        kept = compared.clean(kept)
        dropped[CONTAMINATED] += compared.num_removed
    ordered = sorted(kept, key=lambda document: hashlib.sha256(f"{recipe.seed}/{document.content}".encode()).digest())
    train: list[Document] = []
    heldout: list[Document] = []
    for document in ordered:
        (heldout if is_heldout(document.content, recipe.heldout_fraction, recipe.seed) else train).append(document)
    return train, heldout


def _render(job: Job, renderer: Renderer, documents: list[Document], max_rows: int | None, seen: set[str]) -> list[Row]:
    """Rows of the documents until there are `max_rows`; a row whose tokens were there before is left out."""
    rows: list[Row] = []
    job.progress(0, len(documents), "documents")
    num_tokens, started = 0, time.monotonic()
    for done, row in _rows_with_progress(renderer, documents):
        if row.row_id in seen:
            renderer.dropped["duplicate_row"] += 1
            continue
        seen.add(row.row_id)
        rows.append(row)
        num_tokens += row.num_tokens
        if max_rows is not None and len(rows) >= max_rows:
            break
        speed = num_tokens / max(time.monotonic() - started, 1e-9)
        if job.progress_each_second(done, len(documents), "documents", tokens_per_second=speed):
            job.leave_if_asked()
    return rows


def _rows_with_progress(renderer: Renderer, documents: list[Document]) -> Iterator[tuple[int, Row]]:
    for start in range(0, len(documents), _BATCH_DOCUMENTS):
        for row in renderer.rows(documents[start : start + _BATCH_DOCUMENTS]):
            yield start, row


def _totals(rows: list[Row]) -> dict[str, int]:
    return {
        "num_rows": len(rows),
        "num_tokens": sum(row.num_tokens for row in rows),
        "num_targets": sum(row.num_targets for row in rows),
        "num_bytes": sum(row.num_bytes for row in rows),
    }


if __name__ == "__main__":
    worker_main(run)
