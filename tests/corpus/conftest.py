"""Two tiny tokenizers in model folders: one with a BOS and a dated template, one without a BOS and with ChatML."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts.artifact import Artifact
from tasks.logits.rows import Row, read_rows
from tasks.models.miniature_tokenizers import LLAMA, QWEN, TokenizerFamily, train_tokenizer, write_tokenizer

Rows = Callable[..., dict[str, Any]]
_TEXTS = [f"The {number} quick brown foxes jump over {number + 7} lazy dogs.\n" for number in range(400)]


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders "llama" and "qwen" of about 290 tokens: hardly more than the bytes, so that characters get cut."""
    folders = {}
    for name, family in (("llama", LLAMA), ("qwen", QWEN)):
        small = TokenizerFamily(**{**family.__dict__, "num_tokens": 290, "num_rows": 384})
        folder = tmp_path_factory.mktemp(name)
        write_tokenizer(train_tokenizer(small, _TEXTS), small, folder, 512)
        (folder / "config.json").write_text(
            json.dumps({"model_type": name.replace("qwen", "qwen2"), "vocab_size": 384})
        )
        folders[name] = folder
    return folders


@pytest.fixture
def write_corpus(run_stage: Callable[..., Artifact], tokenizers: dict[str, Path], tmp_path: Path) -> Rows:
    """write_corpus(family, **recipe) runs the stage; returns train and heldout rows, manifest, folder, summary."""

    def write(family: str, instructions: Path | None = None, **recipe: Any) -> dict[str, Any]:
        inputs = {"tokenizer": tokenizers[family]} | ({"instructions": instructions} if instructions else {})
        full = {"max_tokens": 128, "template_date": "2024-07-26", "heldout_fraction": 0.2, **recipe}
        artifact = run_stage("corpus", full, inputs)
        manifest = artifact.manifest()
        assert manifest is not None
        folder = artifact.fetch(manifest, tmp_path / manifest.key)
        rows: dict[str, list[Row]] = {split: read_rows(folder / f"{split}.parquet") for split in ("train", "heldout")}
        summary = json.loads((folder / "corpus.json").read_text())
        return {**rows, "manifest": manifest, "folder": folder, "summary": summary}

    return write


@pytest.fixture
def text_files(tmp_path: Path) -> Callable[[list[str]], dict[str, Any]]:
    """text_files(texts) is a source of these documents."""

    def make(texts: list[str]) -> dict[str, Any]:
        file = tmp_path / "texts.jsonl"
        file.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
        return {"kind": "files", "paths": [str(file)], "format": "jsonl", "text_field": "body"}

    return make


@pytest.fixture
def chat_files(tmp_path: Path) -> Callable[[list[list[tuple[str, str]]]], dict[str, Any]]:
    """chat_files(conversations of (role, content)) is a source of these."""

    def make(conversations: list[list[tuple[str, str]]]) -> dict[str, Any]:
        file = tmp_path / "chats.jsonl"
        lines = [
            {"turns": [{"role": role, "content": content} for role, content in conversation]}
            for conversation in conversations
        ]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return {"kind": "files", "paths": [str(file)], "format": "jsonl", "messages_field": "turns"}

    return make
