"""Parameters and bytes from a config.json, against the model that transformers builds of it on the meta device."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.artifacts.errors import BadInputError
from tasks.planning.architecture import architecture
from tests.planning.shapes import FILES, config_json, meta_model

PUBLISHED = {
    "Qwen--Qwen2.5-14B-Instruct": 14_770_033_664,
    "Qwen--Qwen2.5-72B-Instruct": 72_706_203_648,
    "meta-llama--Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama--Llama-3.1-405B-Instruct-FP8": 405_853_388_800,
}
"""Parameters as the Hugging Face hub counts them in the checkpoints."""


@pytest.mark.parametrize("name", FILES)
def test_a_shipped_shape_has_the_parameters_that_transformers_makes(name: str) -> None:
    config = config_json(name)
    sizes, model = architecture(config), meta_model(config)
    assert sizes.parameters == model.num_parameters()
    assert sizes.end == model.get_output_embeddings().weight.numel()
    assert sizes.tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    assert sizes.parameters == PUBLISHED.get(name, sizes.parameters)
    layer = sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    assert sizes.layer == layer
    assert sizes.with_layers(3).parameters == sizes.parameters - (sizes.num_layers - 3) * layer


def test_the_published_counts_are_of_shapes_that_ship() -> None:
    assert PUBLISHED.keys() <= set(FILES)


def test_another_vocabulary_changes_embedding_and_head_alone() -> None:
    config = config_json("Qwen--Qwen2.5-14B-Instruct")
    assert (
        architecture(config).with_rows(128_256).parameters
        == meta_model(config | {"vocab_size": 128_256}).num_parameters()
    )
    tied = config | {"tie_word_embeddings": True}
    assert architecture(tied).parameters == meta_model(tied).num_parameters()


def test_what_a_checkpoint_holds_in_eight_bits() -> None:
    name = "meta-llama--Llama-3.1-405B-Instruct-FP8"
    config = config_json(name)
    skipped = config["quantization_config"]["modules_to_not_convert"]
    model = meta_model(config)
    eighth = sum(
        parameter.numel()
        for key, parameter in model.named_parameters()
        if key.endswith("_proj.weight") and not any(part in key for part in skipped)
    )
    sizes = architecture(config)
    assert sizes.quantised == eighth
    # Meta's recipe: feed-forward layers alone, neither in the first nor in the last layer.
    assert eighth == 124 * 3 * 16384 * 53248
    assert sizes.bytes() == eighth + 2 * (model.num_parameters() - eighth)
    assert sizes.bytes("float32") == eighth + 4 * (model.num_parameters() - eighth)


@pytest.mark.parametrize(
    ("changes", "size"),
    [({"dtype": "float32"}, 4), ({"dtype": None, "torch_dtype": "float16"}, 2), ({"dtype": None}, 2)],
)
def test_the_checkpoints_own_type_decides_its_bytes(changes: dict[str, Any], size: int) -> None:
    sizes = architecture(config_json("Qwen--Qwen2.5-14B") | changes)
    assert sizes.bytes() == size * sizes.parameters


def test_a_config_without_a_size_is_refused() -> None:
    config = config_json("Qwen--Qwen2.5-14B")
    del config["num_hidden_layers"]
    with pytest.raises(BadInputError, match="no 'num_hidden_layers'"):
        architecture(config)
