"""The formula against torch's own count of a real model's matrix products."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tasks.artifacts.errors import BadInputError
from tasks.planning.flops import GATED_TYPES, causal_pairs, masked_pairs, model_shape, training_flops
from tests.training.parts import make_model

LENGTH, DOCUMENTS, TARGETS = 24, 3, 17


def counted(model: PreTrainedModel) -> int:
    """FLOPs of forward and backward over three documents, the head at some of their positions."""
    model.train()
    input_ids = torch.arange(DOCUMENTS * LENGTH).remainder(60).reshape(DOCUMENTS, LENGTH)
    with FlopCounterMode(display=False) as counter:
        hidden_BTD = model.base_model(input_ids=input_ids, use_cache=False)[0]
        model.get_output_embeddings()(hidden_BTD.flatten(0, 1)[:TARGETS]).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("changes", "frozen"),
    [
        ({}, None),
        ({"num_key_value_heads": 4, "num_attention_heads": 4, "head_dim": 16}, None),
        ({"tie_word_embeddings": False}, "layers"),
        ({"tie_word_embeddings": False}, "head"),
    ],
)
def test_a_step_is_counted_as_torch_counts_it(changes: dict[str, int], frozen: str | None) -> None:
    model = make_model(hidden_size=32, intermediate_size=48, attn_implementation="eager", **changes)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen is None or ("layers" in name) != (frozen == "layers"))
    flops = training_flops(
        model_shape(model.config.to_dict()),
        num_tokens=DOCUMENTS * LENGTH,
        num_targets=TARGETS,
        # torch knows no mask: it counts every token as attending to every other.
        num_pairs=masked_pairs(DOCUMENTS * LENGTH, LENGTH),
        frozen_layers=frozen == "layers",
        frozen_head=frozen == "head",
    )
    assert flops == pytest.approx(counted(model), rel=0.02)


def test_only_what_attention_may_look_at_counts() -> None:
    assert causal_pairs([1]) == 1
    assert causal_pairs([3, 2]) == 6 + 3
    shape = model_shape(make_model().config.to_dict())
    packed, whole = (
        training_flops(shape, num_tokens=8, num_targets=8, num_pairs=causal_pairs(lengths)) for lengths in ([4, 4], [8])
    )
    assert packed < whole


@pytest.mark.parametrize("kind", sorted(GATED_TYPES))
def test_every_known_architecture_has_the_matrices_that_are_counted(kind: str) -> None:
    config = AutoConfig.for_model(
        kind,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=200,
        pad_token_id=0,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    matrices = [parameter for name, parameter in model.named_parameters() if parameter.ndim == 2 and ".layers." in name]
    shape = model_shape(config.to_dict())
    assert shape.layer_weights == sum(parameter.numel() for parameter in matrices)
    assert shape.head_weights == model.get_output_embeddings().weight.numel()


def test_what_is_not_known_is_not_guessed() -> None:
    config = make_model().config.to_dict()
    for kind in ("gpt2", ["llama"], None):
        with pytest.raises(BadInputError, match="are not known"):
            model_shape({**config, "model_type": kind})
    for name in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"):
        with pytest.raises(BadInputError, match=f"{name} '16', no positive whole number"):
            model_shape({**config, name: "16"})
    del config["intermediate_size"]
    with pytest.raises(BadInputError, match="no 'intermediate_size'"):
        model_shape(config)
