"""A tiny teacher with more rows than its tokenizer has ids, and a corpus in its tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from tasks.artifacts.artifact import Artifact
from tasks.logits.rows import Row, row_id_of, write_rows
from tasks.modeling.model_files import save_causal_lm
from tasks.modeling.tokenizer_files import save_tokenizer, tokenizer_digest

VOCAB, ROWS, MAX_LENGTH = 251, 256, 64
LENGTHS = {"train": [9, 64, 1, 33, 2, 17, 40, 25], "heldout": [12, 30, 21]}


def make_tokenizer(vocab_size: int = VOCAB) -> PreTrainedTokenizerFast:
    words = {f"w{index}": index for index in range(vocab_size - 1)} | {"<|end|>": vocab_size - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", unk_token="w0")


def make_model(num_rows: int = ROWS, **changes: Any) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    settings = {
        "vocab_size": num_rows,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_LENGTH,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
    }
    return Qwen2ForCausalLM(Qwen2Config(**(settings | changes))).eval()


def quantise_to_fp8(directory: Path, block: int = 16) -> None:
    """Turns a saved model's layers into FP8 (E4M3) with a float32 scale a block, and all else into bfloat16."""
    file = directory / "model.safetensors"
    tensors = {}
    for name, weight_RC in load_file(file).items():
        tensors[name] = weight_RC.bfloat16()
        if name.endswith("_proj.weight"):
            rows, columns = weight_RC.shape
            blocks_RBCB = weight_RC.float().reshape(rows // block, block, columns // block, block)
            scale_RC = blocks_RBCB.abs().amax((1, 3)) / torch.finfo(torch.float8_e4m3fn).max
            scaled_RC = (blocks_RBCB / scale_RC[:, None, :, None]).reshape(rows, columns)
            tensors |= {name: scaled_RC.to(torch.float8_e4m3fn), f"{name}_scale_inv": scale_RC}
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config["dtype"] = "bfloat16"
    config["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [block, block],
        "modules_to_not_convert": ["lm_head"],
    }
    (directory / "config.json").write_text(json.dumps(config))


def make_row(length: int, seed: int) -> Row:
    generator = np.random.default_rng(seed)
    input_ids = generator.integers(0, VOCAB, length).astype(np.int32)
    loss_mask = (generator.random(length) < 0.8).astype(np.uint8)
    loss_mask[0] = 0
    return Row(row_id_of(input_ids), input_ids, loss_mask, "text", 4, "text", "test")


@pytest.fixture
def rows() -> dict[str, list[Row]]:
    return {
        split: [make_row(length, 100 * place + index) for index, length in enumerate(lengths)]
        for place, (split, lengths) in enumerate(LENGTHS.items())
    }


@pytest.fixture
def teacher_of(tmp_path: Path, artifact_of: Callable[..., Artifact]) -> Callable[..., Artifact]:
    """teacher_of(model=None, vocab_size=VOCAB, prepare=None, **config changes) commits a model with a tokenizer.

    `prepare` changes its files first.
    """

    def make(
        model: PreTrainedModel | None = None,
        vocab_size: int = VOCAB,
        prepare: Callable[[Path], None] = lambda directory: None,
        **changes: Any,
    ) -> Artifact:
        directory = tmp_path / f"teacher-{len(list(tmp_path.iterdir()))}"
        save_causal_lm(model or make_model(**changes), directory)
        prepare(directory)
        save_tokenizer(make_tokenizer(vocab_size), directory)
        return artifact_of(directory)

    return make


@pytest.fixture
def corpus_of(tmp_path: Path, artifact_of: Callable[..., Artifact]) -> Callable[..., Artifact]:
    """corpus_of(rows) commits a corpus in the tokens of the default tokenizer."""

    def make(rows: Mapping[str, list[Row]]) -> Artifact:
        directory = tmp_path / f"corpus-{len(list(tmp_path.iterdir()))}"
        directory.mkdir()
        for split, part in rows.items():
            write_rows(directory / f"{split}.parquet", part)
        (directory / "corpus.json").write_text(json.dumps({"tokenizer_digest": tokenizer_digest(make_tokenizer())}))
        return artifact_of(directory)

    return make


@pytest.fixture
def inputs(
    rows: dict[str, list[Row]], teacher_of: Callable[..., Artifact], corpus_of: Callable[..., Artifact]
) -> dict[str, Artifact]:
    return {"teacher": teacher_of(), "corpus": corpus_of(rows)}


@pytest.fixture
def recipe_of() -> Callable[..., dict[str, Any]]:
    """recipe_of(**changes): 16 kept entries in float32, three rows a shard."""

    def make(**changes: Any) -> dict[str, Any]:
        recipe = {
            "teacher": {"dtype": "float32"},
            "support": {"kind": "top_k", "num_kept": 16},
            "values": "float32",
            "rows_per_shard": 3,
            "temperatures": [2],
        }
        return recipe | changes

    return make
