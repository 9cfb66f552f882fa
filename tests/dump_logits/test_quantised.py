"""Meta's FP8 checkpoints: refused before they are fetched, and held by two processes together."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.quantizers import quantizer_fbgemm_fp8
from transformers.quantizers.quantizer_fbgemm_fp8 import FbgemmFp8HfQuantizer

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.dump_logits.quantised import check_quantiser
from tasks.dump_logits.teacher import config_of
from tasks.dump_logits.tensor_group import load_cut, whole
from tasks.modeling.hub import REFERENCE_FILE
from tasks.modeling.model_files import load_causal_lm, save_causal_lm
from tests.dump_logits.conftest import VOCAB
from tests.dump_logits.fbgemm import declare_fbgemm, quantise_with_fbgemm

IDS_BT = torch.arange(2, 26).reshape(2, 12) * 7 % VOCAB
DOWN = "model.layers.1.mlp.down_proj"


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
                         initializer_range=0.3, tie_word_embeddings=False)  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "checkpoint"
    save_causal_lm(llama(), directory)
    quantise_with_fbgemm(directory)
    return directory


def test_a_checkpoint_whose_kernels_are_missing_is_refused_before_its_weights_are_fetched(
    monkeypatch: pytest.MonkeyPatch,
    run_stage: Callable[..., Artifact],
    recipe_of: Callable[..., dict[str, Any]],
    teacher_of: Callable[..., Artifact],
    inputs: dict[str, Artifact],
) -> None:
    def leave_weights_on_the_hub(directory: Path) -> None:
        quantise_with_fbgemm(directory)
        (directory / "model.safetensors").unlink()
        (directory / REFERENCE_FILE).write_text(json.dumps({"repo": "nobody/nothing", "revision": "0" * 40}))

    # As on a GPU machine without the package.
    monkeypatch.setattr(quantizer_fbgemm_fp8, "is_torch_cuda_available", lambda: True)
    monkeypatch.setattr(quantizer_fbgemm_fp8, "is_fbgemm_gpu_available", lambda: False)
    teacher = teacher_of(llama(), prepare=leave_weights_on_the_hub)
    recipe = recipe_of(teacher={"dtype": "bfloat16", "quantisation": "fp8"})
    with pytest.raises(
        BadInputError, match=r"quantised as fbgemm_fp8.*requires fbgemm-gpu.*'\.\[worker,fp8\]'.*kind served"
    ):
        run_stage("dump_logits", recipe, inputs | {"teacher": teacher})


def test_kernels_that_do_not_load_are_refused_too(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The package is there and its operators are not, as where it was built for another torch.
    monkeypatch.setattr(FbgemmFp8HfQuantizer, "validate_environment", lambda *args, **options: None)
    with pytest.raises(BadInputError, match=r"quantised as fbgemm_fp8.*no attribute 'quantize_fp8_per_row'"):
        check_quantiser(config_of(checkpoint), torch.device("cpu"))


def test_a_method_that_transformers_does_not_know_is_refused(checkpoint: Path) -> None:
    config = config_of(checkpoint)
    config.quantization_config["quant_method"] = "invented"
    with pytest.raises(BadInputError, match=r"quantised as invented.*Unknown quantization type"):
        check_quantiser(config, torch.device("cpu"))


@pytest.mark.slow
def test_two_processes_hold_an_fp8_teacher_with_all_of_its_scales(checkpoint: Path, tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as processes:
        alone = processes.submit(_alone, checkpoint)
        parts = [processes.submit(_part, checkpoint, tmp_path / "store", rank) for rank in range(2)]
        logits_BTV, results = alone.result(), [part.result() for part in parts]
    scale = load_file(checkpoint / "model.safetensors")[f"{DOWN}.weight_scale"]
    for theirs_BTV, shape, scale_R1 in results:
        assert shape == (32, 32)
        assert torch.equal(scale_R1, scale)
        # Each process rounds its half of down_proj's inputs to FP8 by a scale of its own: 3 bits of mantissa.
        divergence_BT = torch.nn.functional.kl_div(
            theirs_BTV.log_softmax(-1), logits_BTV.log_softmax(-1), reduction="none", log_target=True
        ).sum(-1)
        assert divergence_BT.mean() < 0.01
    assert torch.equal(results[0][0], results[1][0])


@pytest.mark.slow
def test_an_fp8_teacher_that_lacks_a_scale_is_refused_by_every_process(checkpoint: Path, tmp_path: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors[f"{DOWN}.weight_scale"]
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        for part in [processes.submit(_part, checkpoint, tmp_path / "store", rank) for rank in range(2)]:
            with pytest.raises(BadInputError, match=f"lack {DOWN}.weight_scale"):
                part.result()


def _ready() -> None:
    torch.set_num_threads(1)
    declare_fbgemm()
    FbgemmFp8HfQuantizer.validate_environment = lambda *args, **options: None


@torch.inference_mode()
def _alone(checkpoint: Path) -> Tensor:
    _ready()
    logits_BTV: Tensor = load_causal_lm(checkpoint, dtype=torch.bfloat16)(IDS_BT).logits.float()
    return logits_BTV


@torch.inference_mode()
def _part(checkpoint: Path, store: Path, rank: int) -> tuple[Tensor, tuple[int, ...], Tensor]:
    """Logits (B, T, V) by this rank's half, the shape of its part of a down_proj, and that one's scales."""
    _ready()
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        model = load_cut(checkpoint, dtype=torch.bfloat16, attention="sdpa", size=2)
        logits_BTV = model(IDS_BT).logits.float()
        down = model.get_submodule(DOWN)
        return logits_BTV, tuple(down.weight.to_local().shape), whole(down.weight_scale).clone()
    finally:
        distributed.destroy_process_group()
