"""Models survive saving, and know where a text ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from tasks.artifacts.errors import BadInputError
from tasks.modeling.bits_per_byte import TEXTS, bits_per_byte, bits_per_byte_of_result
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


def _rewrite(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("lm_head.weight"), r"lack lm_head\.weight, which"),
        (lambda weights: weights.update(extra=torch.zeros(3)), "have extra, which Qwen2ForCausalLM does not use"),
        (
            lambda weights: [weights.pop(name) for name in sorted(weights) if "mlp" in name],
            r"lack model\.layers\.0\.mlp\.down_proj\.weight and 2 more",
        ),
        (
            lambda weights: weights.update({"model.norm.weight": torch.ones(8)}),
            r"have model\.norm\.weight in the shape \[8\] where their config\.json asks for \[16\]",
        ),
    ],
)
def test_weights_that_the_config_does_not_describe_are_refused(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    """transformers makes up what is missing and drops what it does not know."""
    save_causal_lm(_model(64, tied=False), tmp_path)
    _rewrite(tmp_path, change)
    with pytest.raises(BadInputError, match=message) as refused:
        load_causal_lm(tmp_path, dtype=torch.float32)
    assert str(tmp_path) in str(refused.value)


def test_a_tied_head_and_what_an_architecture_ignores_are_no_reason_to_refuse(tmp_path: Path) -> None:
    save_causal_lm(_model(64, tied=True), tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    # A buffer of older checkpoints.
    _rewrite(tmp_path, lambda weights: weights.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    load_causal_lm(tmp_path, dtype=torch.float32)


def test_the_row_of_an_end_token_that_stands_in_for_padding_learns(tmp_path: Path) -> None:
    save_causal_lm(_model(64, tied=False, eos_token_id=3, pad_token_id=3), tmp_path)
    model = load_causal_lm(tmp_path, dtype=torch.float32)
    ids_BT = torch.tensor([[5, 3, 7, 8]])
    model(input_ids=ids_BT, labels=ids_BT).loss.backward()
    gradient = model.get_input_embeddings().weight.grad
    assert isinstance(gradient, torch.Tensor)
    assert gradient.any(dim=1).nonzero()[:, 0].tolist() == [3, 5, 7]


def test_bits_per_byte_is_uniform_for_a_flat_model_and_ignores_padding_rows(
    qwen_like: PreTrainedTokenizerFast,
) -> None:
    model = _model(320, tied=False)
    torch.nn.init.zeros_(model.lm_head.weight)
    num_tokens = sum(len(qwen_like.encode(text)) for text in TEXTS["code"])
    num_bytes = sum(len(text.encode()) for text in TEXTS["code"])
    expected = num_tokens * torch.log2(torch.tensor(float(len(qwen_like)))) / num_bytes
    assert bits_per_byte(model, qwen_like)["code"] == pytest.approx(float(expected), rel=1e-5)


def test_logits_that_are_not_finite_are_refused_or_told(qwen_like: PreTrainedTokenizerFast) -> None:
    """Of a given model and of one that a stage has just made."""
    model = _model(320, tied=False)
    digit = qwen_like.convert_tokens_to_ids("7")
    with torch.no_grad():
        # English prose has no digit.
        model.model.embed_tokens.weight[digit] = float("nan")
    bits = bits_per_byte_of_result(model, qwen_like)
    assert {kind for kind, value in bits.items() if value is None} == {"digits"}
    with pytest.raises(BadInputError, match="not finite on digits text"):
        bits_per_byte(model, qwen_like)


def test_bits_per_byte_refuses_a_model_with_too_few_rows(qwen_like: PreTrainedTokenizerFast) -> None:
    with pytest.raises(BadInputError, match="64 embedding rows"):
        bits_per_byte(_model(64, tied=True), qwen_like)
