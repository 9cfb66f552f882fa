"""Memory and traffic of a training against the ZeRO paper (Rajbhandari et al., 2020) and against what torch keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tasks.planning.activations import training_activations
from tasks.planning.architecture import Architecture, architecture
from tasks.planning.training_memory import (
    Sharding,
    checkpoint_bytes,
    traffic_per_pass,
    traffic_per_step,
    training_memory,
)
from tests.planning.shapes import config_json
from tests.training.parts import make_model

NAME = "Qwen--Qwen2.5-14B"
DEVICES = 64


def sizes() -> Architecture:
    return architecture(config_json(NAME))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_states_are_cut_as_the_paper_cuts_them(stage: int) -> None:
    model = sizes()
    count = model.parameters
    memory = training_memory(
        model, Sharding(stage=stage, devices=DEVICES), "bfloat16", tokens=1, packed_tokens=0, checkpointing=True
    )
    # Section 5 and figure 1 of the paper: 2 Ψ of weights, 12 Ψ of AdamW, each cut from its stage on.
    assert memory.weights == 2 * count / (DEVICES if stage == 3 else 1)
    assert memory.optimiser == 12 * count / (DEVICES if stage >= 1 else 1)
    # The paper keeps gradients in 16 bits; here they are summed over a step's passes in float32.
    assert memory.gradients == 4 * count / (DEVICES if stage >= 2 else 1)


def test_embedding_and_head_are_one_group_of_the_optimiser() -> None:
    wide = sizes().with_layers(4)
    assert wide.ends > wide.shape.layer_weights > wide.end
    for model, group in ((wide, wide.ends), (sizes(), sizes().shape.layer_weights)):
        memory = training_memory(
            model, Sharding(stage=0, devices=1), "float32", tokens=1, packed_tokens=0, checkpointing=True
        )
        assert memory.step == 2 * 4 * group


def test_the_papers_own_example() -> None:
    # 7.5 billion parameters on 64 devices: 120, 31.4, 16.6 and 1.9 GB; 2 of every 16 bytes are its 16-bit gradients.
    model = sizes()
    ours = []
    for stage in range(4):
        memory = training_memory(
            model, Sharding(stage=stage, devices=64), "bfloat16", tokens=1, packed_tokens=0, checkpointing=True
        )
        scale = 7.5e9 / model.parameters
        ours.append((memory.weights + memory.optimiser + memory.gradients / 2) * scale / 1e9)
    assert ours == pytest.approx([120, 31.4, 16.6, 1.88], rel=0.01)


def test_traffic_is_that_of_the_paper() -> None:
    # Section 7: as much as plain data parallelism at stages 1 and 2, one and a half times that at stage 3; of equally
    # wide weights and gradients, and of one pass a step.
    model = sizes()
    moved = {}
    for stage in range(4):
        sharding = Sharding(stage=stage, devices=DEVICES)
        moved[stage] = traffic_per_pass(model, sharding, "float32") + traffic_per_step(model, sharding, "float32")
    part = (DEVICES - 1) / DEVICES
    assert moved[0] == 2 * 4 * model.parameters * part
    assert moved[2] == moved[0]
    assert moved[3] == 1.5 * moved[0]
    assert traffic_per_pass(model, Sharding(stage=3, devices=1), "float32") == 0


def test_offloading_moves_states_into_the_nodes_memory() -> None:
    model = sizes()
    plain, optimiser, everything = (
        training_memory(
            model,
            Sharding(stage=3, devices=8, offload_optimizer=first, offload_weights=second),
            "bfloat16",
            tokens=8192,
            packed_tokens=4096,
            checkpointing=True,
        )
        for first, second in ((False, False), (True, False), (True, True))
    )
    assert optimiser.gradients == optimiser.optimiser == 0
    assert optimiser.host - plain.host == plain.optimiser + 4 * model.parameters / 8
    assert everything.weights == 0
    assert everything.host - optimiser.host == plain.weights
    assert plain.peak > optimiser.peak > everything.peak


def test_the_deepspeed_json_is_read() -> None:
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "none"}}
    found = Sharding.of({"zero_optimization": zero}, 16)
    assert found == Sharding(stage=3, devices=16, offload_optimizer=True)
    found = Sharding.of({"zero_optimization": {"stage": 2, "reduce_bucket_size": 7}}, 2)
    assert (found.bucket, found.part(2), found.part(3)) == (7, 2, 1)


def test_a_checkpoint_has_weights_moments_and_a_float32_copy() -> None:
    model = sizes()
    assert checkpoint_bytes(model, Sharding(stage=3, devices=8), "bfloat16") == 14 * model.parameters
    assert checkpoint_bytes(model, Sharding(stage=0, devices=1), "float32") == 12 * model.parameters


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_frozen_embedding_and_head_have_neither_gradients_nor_states(stage: int) -> None:
    model, sharding = sizes(), Sharding(stage=stage, devices=8)
    free, frozen = (
        training_memory(
            model, sharding, "bfloat16", tokens=4096, packed_tokens=0, checkpointing=True, frozen_ends=frozen_ends
        )
        for frozen_ends in (False, True)
    )
    assert frozen.weights == free.weights
    assert free.gradients - frozen.gradients == 4 * model.ends / sharding.part(2)
    assert free.optimiser - frozen.optimiser == 12 * model.ends / sharding.part(1)
    # The head's own gradient in float32, both ends' in bfloat16.
    assert free.head - frozen.head == 4 * model.end + 2 * model.ends
    saved = checkpoint_bytes(model, sharding, "bfloat16") - checkpoint_bytes(
        model, sharding, "bfloat16", frozen_ends=True
    )
    assert saved == 12 * model.ends
    # Weights are gathered whatever learns; gradients move for what does, in every pass or in every step.
    part = 7 / 8 * 4 * model.ends
    passes, steps = (
        moved(model, sharding, "float32") - moved(model, sharding, "float32", frozen_ends=True)
        for moved in (traffic_per_pass, traffic_per_step)
    )
    assert (passes, steps) == {0: (0, 2 * part), 1: (0, 3 * part), 2: (part, part), 3: (part, 0)}[stage]


def kept(model: PreTrainedModel, input_ids: Tensor, position_ids: Tensor | None) -> int:
    """Bytes of all tensors that autograd keeps of a forward pass of the layers, weights left out."""
    storages: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)
        return tensor

    # Held, so that no address is used twice.
    held: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden_BTD = model.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False)[0]
    assert hidden_BTD.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "float32"), (torch.bfloat16, "bfloat16")])
@pytest.mark.parametrize("packed", [False, True], ids=["a document a row", "two in a row"])
def test_activations_are_what_autograd_keeps(dtype: torch.dtype, name: str, packed: bool) -> None:
    # As tasks/training/batches.py tells them apart.
    positions = torch.arange(128).repeat(2).expand(2, -1) if packed else None
    changes = {"hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 4, "num_key_value_heads": 2}
    found = {}
    for layers in (2, 6):
        model = make_model(num_hidden_layers=layers, max_position_embeddings=256, **changes).to(dtype).train()
        found[layers] = kept(model, torch.arange(2 * 256).remainder(60).reshape(2, 256), positions)
    sizes = architecture(model.config.to_dict())
    forecast = {
        layers: training_activations(
            sizes.with_layers(layers), name, tokens=512, packed_tokens=256 if packed else 0, checkpointing=False
        )
        for layers in found
    }
    assert forecast[6] - forecast[2] == pytest.approx(found[6] - found[2], rel=0.03)
