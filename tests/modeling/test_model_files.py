"""Models survive saving, and know where a text ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from tasks.artifacts.errors import BadInputError
from tasks.modeling.bits_per_byte import TEXTS, bits_per_byte
from tasks.modeling.model_files import load_causal_lm, save_causal_lm, stored_dtype


def _model(rows: int, *, tied: bool, **ids: Any) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        **ids,
    )
    return Qwen2ForCausalLM(config)


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_is_exact_and_repeatable(tmp_path: Path, tied: bool) -> None:
    model = _model(64, tied=tied, eos_token_id=3)
    save_causal_lm(model, tmp_path / "a")
    again = load_causal_lm(tmp_path / "a", dtype=torch.float32)
    assert not again.training
    save_causal_lm(again, tmp_path / "b")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["config.json", "generation_config.json", "model.safetensors"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_dtype_converts_the_files_and_leaves_the_model(tmp_path: Path) -> None:
    model = _model(64, tied=True)
    save_causal_lm(model, tmp_path, dtype=torch.bfloat16)
    assert model.dtype == torch.float32
    assert stored_dtype(tmp_path) == torch.bfloat16
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118


def test_generation_config_gets_the_ids_of_the_config(tmp_path: Path) -> None:
    model = _model(64, tied=True, eos_token_id=3, bos_token_id=1, pad_token_id=2)
    model.generation_config.eos_token_id = None
    save_causal_lm(model, tmp_path)
    stored = json.loads((tmp_path / "generation_config.json").read_text())
    assert (stored["bos_token_id"], stored["eos_token_id"], stored["pad_token_id"]) == (1, 3, 2)


def test_directory_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"no config\.json"):
        load_causal_lm(tmp_path, dtype=torch.float32)


def test_bits_per_byte_is_uniform_for_a_flat_model_and_ignores_padding_rows(
    qwen_like: PreTrainedTokenizerFast,
) -> None:
    model = _model(320, tied=False)
    torch.nn.init.zeros_(model.lm_head.weight)
    num_tokens = sum(len(qwen_like.encode(text)) for text in TEXTS["code"])
    num_bytes = sum(len(text.encode()) for text in TEXTS["code"])
    expected = num_tokens * torch.log2(torch.tensor(float(len(qwen_like)))) / num_bytes
    assert bits_per_byte(model, qwen_like)["code"] == pytest.approx(float(expected), rel=1e-5)


def test_bits_per_byte_refuses_a_model_with_too_few_rows(qwen_like: PreTrainedTokenizerFast) -> None:
    with pytest.raises(BadInputError, match="64 embedding rows"):
        bits_per_byte(_model(64, tied=True), qwen_like)
