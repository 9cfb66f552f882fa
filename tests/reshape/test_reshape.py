"""Reshaping: a Llama model as Qwen2 gives the same logits to the last bit, and a pruned one is its layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2ForCausalLM

from tasks.artifacts.errors import BadInputError
from tasks.modeling.model_files import copy_tokenizer_files, load_causal_lm, save_causal_lm
from tasks.modeling.tokenizer_files import load_tokenizer, reloads_exactly, tokenizer_digest
from tasks.models.stage import MINIATURES
from tasks.reshape.architecture import as_qwen2, with_layers
from tasks.reshape.stage import ReshapeRecipe
from tasks.reshape.tensors import reshaped, write_tensors

ROPES: dict[str, dict[str, object]] = {
    "default": {"rope_type": "default", "rope_theta": 50_000.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


def tiny_llama(**changes: object) -> LlamaForCausalLM:
    """Random weights with unlike norms, 2 query heads to a key head, 4 layers, 1,024 rows."""
    torch.manual_seed(0)
    fields: dict[str, object] = {
        "vocab_size": 1024,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 3e-5,
        "initializer_range": 0.2,
        "rope_parameters": ROPES["default"],
        "bos_token_id": 1018,
        "eos_token_id": [1023, 1019],
        "pad_token_id": 1020,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**fields, **changes})).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
    return model


def folder_of(model: PreTrainedModel, directory: Path) -> Path:
    save_causal_lm(model, directory)
    copy_tokenizer_files(MINIATURES / "llama-teacher", directory)
    return directory


def logits_of(model: PreTrainedModel) -> torch.Tensor:
    """(2, 200, 1024): longer than the llama3 rope's original context, so that its scaling counts."""
    ids = torch.randint(0, 1024, (2, 200), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(input_ids=ids).logits


def fetched(artifact, directory: Path) -> Path:
    return artifact.fetch(artifact.manifest(), directory)


@pytest.mark.parametrize(("tied", "rope"), [(True, "default"), (False, "default"), (False, "llama3")])
def test_a_llama_as_qwen2_gives_the_same_logits_to_the_bit(run_stage, tmp_path: Path, tied: bool, rope: str) -> None:
    llama = tiny_llama(tie_word_embeddings=tied, rope_parameters=ROPES[rope])
    source = folder_of(llama, tmp_path / "llama")
    artifact = run_stage("reshape", {"architecture": "qwen2"}, {"model": source})
    target = fetched(artifact, tmp_path / "copy")
    qwen = load_causal_lm(target, dtype=torch.float32)
    assert isinstance(qwen, Qwen2ForCausalLM)
    assert torch.equal(logits_of(qwen), logits_of(load_causal_lm(source, dtype=torch.float32)))
    assert (qwen.lm_head.weight is qwen.model.embed_tokens.weight) == tied
    manifest = artifact.manifest()
    # A q of 48 and a k and a v of 24 more in each of the 4 layers.
    assert manifest.metrics["parameters"] == llama.num_parameters() + 4 * (48 + 24 + 24)
    assert manifest.metrics["dtypes"] == ["float32"]

    saved = tmp_path / "as transformers saves it"
    save_causal_lm(qwen, saved)
    mine, theirs = (json.loads((place / "config.json").read_text()) for place in (target, saved))
    assert mine == theirs
    assert (target / "generation_config.json").read_bytes() == (source / "generation_config.json").read_bytes()


def test_the_tokenizer_keeps_its_ids_under_the_other_model_type(run_stage, tmp_path: Path) -> None:
    source = folder_of(tiny_llama(), tmp_path / "llama")
    target = fetched(run_stage("reshape", {"architecture": "qwen2"}, {"model": source}), tmp_path / "copy")
    assert json.loads((target / "config.json").read_text())["model_type"] == "qwen2"
    assert reloads_exactly(target)
    assert tokenizer_digest(load_tokenizer(target)) == tokenizer_digest(load_tokenizer(source))
    assert (target / "chat_template.jinja").read_bytes() == (source / "chat_template.jinja").read_bytes()


def test_a_pruned_model_is_the_layers_that_stay(run_stage, tmp_path: Path) -> None:
    llama = tiny_llama()
    source = folder_of(llama, tmp_path / "llama")
    artifact = run_stage("reshape", {"architecture": "qwen2", "keep_layers": [0, 2, 3]}, {"model": source})
    pruned = load_causal_lm(fetched(artifact, tmp_path / "copy"), dtype=torch.float32)
    llama.model.layers = torch.nn.ModuleList(llama.model.layers[layer] for layer in (0, 2, 3))
    for index, layer in enumerate(llama.model.layers):
        layer.self_attn.layer_idx = index
    llama.config.num_hidden_layers = 3
    assert torch.equal(logits_of(pruned), logits_of(llama))
    assert pruned.config.layer_types == ["full_attention"] * 3
    assert artifact.manifest().metrics["layers"] == 3


def test_the_shipped_llama_keeps_its_dtype_or_takes_the_one_asked_for(run_stage, tmp_path: Path) -> None:
    source = MINIATURES / "llama-teacher"
    same = run_stage("reshape", {"architecture": "qwen2"}, {"model": source})
    assert same.manifest().metrics["dtypes"] == ["bfloat16"]
    wide = run_stage("reshape", {"architecture": "qwen2", "dtype": "float32"}, {"model": source})
    assert wide.manifest().metrics["dtypes"] == ["float32"]
    model = load_causal_lm(fetched(wide, tmp_path / "wide"), dtype=torch.float32)
    assert model.config.dtype == torch.float32
    assert torch.equal(logits_of(model), logits_of(load_causal_lm(source, dtype=torch.float32)))


def test_large_models_are_written_in_parts_that_transformers_reads(tmp_path: Path) -> None:
    llama = tiny_llama()
    source = folder_of(llama, tmp_path / "llama")
    target = tmp_path / "parts"
    target.mkdir()
    write_tensors(reshaped(source, keep_layers=None, biases=False, dtype=None), target, max_bytes=200_000)
    names = sorted(path.name for path in target.glob("*.safetensors"))
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    assert len(names) > 2
    sizes = []
    for name in names:
        with safe_open(target / name, framework="pt") as file:
            sizes.append(sum(file.get_tensor(key).nbytes for key in file.keys()))  # noqa: SIM118 - not a dict
    # The embedding alone is 196,608 bytes.
    assert max(sizes) <= 200_000
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    assert torch.equal(logits_of(load_causal_lm(target, dtype=torch.float32)), logits_of(llama))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"head_dim": 16}, "head_dim=16"),
        ({"rope_parameters": {**ROPES["default"], "partial_rotary_factor": 0.5}}, r"partial_rotary_factor=0\.5"),
        ({"pretraining_tp": 2}, "pretraining_tp=2"),
    ],
)
def test_what_qwen2_cannot_be_is_refused(changes: dict[str, object], what: str) -> None:
    values = LlamaConfig(**{"hidden_size": 48, "num_attention_heads": 4, **changes}).to_dict()
    with pytest.raises(BadInputError, match=f"{what}, which no Qwen2 model has"):
        as_qwen2(values)


def test_models_of_other_kinds_are_refused_in_one_sentence() -> None:
    with pytest.raises(BadInputError, match="made of a llama model, and this one is a qwen2"):
        as_qwen2({"model_type": "qwen2"})
    with pytest.raises(BadInputError, match="of the types llama, qwen2, and this one is a gpt2"):
        with_layers({"model_type": "gpt2", "num_hidden_layers": 4}, (0,))
    with pytest.raises(BadInputError, match="names layer 4, and the model has 4, numbered from 0"):
        with_layers({"model_type": "llama", "num_hidden_layers": 4}, (0, 4))
    with pytest.raises(BadInputError, match="max_window_layers"):
        with_layers({"model_type": "qwen2", "num_hidden_layers": 4, "use_sliding_window": True}, (0,))


def test_a_recipe_that_changes_nothing_or_repeats_a_layer_is_refused() -> None:
    with pytest.raises(ValidationError, match="nothing is asked for"):
        ReshapeRecipe()
    for layers in ((1, 0), (0, 0)):
        with pytest.raises(ValidationError, match="each layer once, in ascending order"):
            ReshapeRecipe(keep_layers=layers)
