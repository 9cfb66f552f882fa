"""Weights of a teacher among its devices, against what the processes of a real tensor group hold; logits of lm-eval."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tasks.modeling.model_files import save_causal_lm
from tasks.planning.activations import forward_activations
from tasks.planning.architecture import architecture
from tasks.planning.forward_memory import dump_memory, evaluation_memory
from tests.bench.training import run_processes
from tests.planning.shapes import config_json
from tests.training.parts import make_model


def test_the_leader_of_a_group_holds_the_weights_that_are_forecast(tmp_path: Path) -> None:
    forecast = {}
    for tied in (True, False):
        model = make_model(
            vocab_size=512, hidden_size=64, intermediate_size=160, num_key_value_heads=2, tie_word_embeddings=tied
        )
        directory = tmp_path / f"tied-{tied}"
        torch.nn.Module.to(model, torch.bfloat16)
        save_causal_lm(model, directory)
        sizes = architecture(model.config.to_dict())
        memory = dump_memory(sizes, "bfloat16", tokens=1, row_tokens=1, chunk_tokens=1, tensor_parallel=2)
        forecast[str(directory)] = memory.weights
        alone = dump_memory(sizes, "bfloat16", tokens=1, row_tokens=1, chunk_tokens=1, tensor_parallel=1)
        assert alone.weights == sum(2 * parameter.numel() for parameter in model.parameters())
    held = run_processes("tests.planning.cut_weights", list(forecast), 2)
    # Norms and biases are whole on every device: in models this small 2 %.
    assert forecast == pytest.approx(held, rel=0.02)


def test_a_dump_holds_logits_of_one_chunk_and_activations_of_one_batch() -> None:
    model = architecture(config_json("meta-llama--Llama-3.1-405B-Instruct-FP8"))
    small, large = (
        dump_memory(model, "bfloat16", tokens=tokens, row_tokens=4096, chunk_tokens=4096, tensor_parallel=8)
        for tokens in (8192, 32768)
    )
    assert small.head - 2 * 8192 * 16384 == 4.5 * 4096 * 128_256
    assert large.activations == 4 * small.activations
    assert small.weights == large.weights
    # 80 GB do not hold an eighth of it and 32,768 tokens, which is why the profile has batches of 8,192.
    assert small.peak < 0.92 * 80e9 < large.peak


def test_a_mask_is_held_where_it_is_wider_than_the_mlp() -> None:
    model = architecture(config_json("Qwen--Qwen2.5-14B-Instruct"))
    short, mlp, masked = (
        forward_activations(model, "bfloat16", tokens=32768, row_tokens=row) for row in (1, 4096, 32768)
    )
    assert short == mlp
    # Keys and values as wide as the 40 heads' queries, a pair's bool and its number; not the MLP's two tensors.
    assert masked - mlp == 32768 * (2 * 2 * 5120 + 3 * 32768 - 2 * 2 * 13824)


def test_an_evaluation_needs_room_for_the_logits_of_whole_prompts() -> None:
    model = architecture(config_json("Qwen--Qwen2.5-14B-Instruct"))
    eight, sixty_four = (
        evaluation_memory(model, "bfloat16", batch=batch, prompt=3000, window=0, windows=0) for batch in (8, 64)
    )
    assert eight.head == 2 * 2 * 8 * 3000 * 152_064
    assert eight.cache == 2 * 2 * 48 * 1024 * 8 * 3000
    assert eight.peak < 80e9 < sixty_four.peak
    text = evaluation_memory(model, "bfloat16", batch=8, prompt=40, window=2048, windows=5)
    assert text.head == (2 * 5 + 8) * 2048 * 152_064
    assert text.cache == 0
