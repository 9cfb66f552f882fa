"""How the production teachers are cut, by the code that loads them, on the meta device and without other processes."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoConfig
from transformers.distributed import DistributedConfig
from transformers.distributed.tensor_parallel import apply_tensor_parallelism

from flows.profiles import load_profile
from tasks.artifacts.errors import BadInputError
from tasks.dump_logits.tensor_group import check_plan
from tasks.planning.architecture import architecture
from tasks.planning.forward_memory import dump_memory
from tests.planning.shapes import config_json, meta_model

LAYERS = 4
"""Of 126 and 80: all are cut alike, and hooks on 126 take 10 s."""
TEACHERS = {"llama": "meta-llama--Llama-3.1-405B-Instruct-FP8", "qwen": "Qwen--Qwen2.5-72B-Instruct"}


def group_size(branch: str) -> int:
    """Processes that hold the branch's teacher together in the production profile."""
    profile = load_profile("medius")
    dump = profile.branches[branch].dump_logits
    assert dump is not None
    return dump.runtime.tensor_parallel


def here(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


@pytest.mark.parametrize("branch", TEACHERS)
def test_each_device_holds_the_part_that_is_forecast(branch: str) -> None:
    # A process has one default group: a training of another test in this one would meet in it.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(_check_part, branch).result()


def _check_part(branch: str) -> None:
    """As the first of the branch's processes, in a group that nobody else is in."""
    size = group_size(branch)
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    config = config_json(TEACHERS[branch]) | {"num_hidden_layers": LAYERS}
    config.pop("quantization_config", None)
    sizes, model = architecture(config), meta_model(config)
    plan, _, _ = model._resolve_parallel_plans(DistributedConfig(tp_size=size, tp_plan="auto"))
    whole = {name: parameter.shape for name, parameter in model.named_parameters()}
    apply_tensor_parallelism(model, init_device_mesh("cpu", (size,)), plan)

    held = {name: here(parameter.data) for name, parameter in model.named_parameters()}
    for name, part in held.items():
        if len(whole[name]) == 2:
            # Every matrix is cut along one side, evenly.
            assert sorted(a // b for a, b in zip(whole[name], part.shape, strict=True)) == [1, size], name
            assert part.numel() * size == whole[name].numel(), name
    head = model.get_output_embeddings().weight
    leader = 2 * (sum(part.numel() for part in held.values()) - here(head.data).numel() + sizes.end)
    memory = dump_memory(sizes, "bfloat16", tokens=1, chunk_tokens=1, tensor_parallel=size)
    # Norms, and the biases that are not cut, are whole on each.
    assert leader == pytest.approx(memory.weights, rel=1e-3)
    assert all(parameter.is_meta for parameter in map(torch.Tensor.detach, held.values()))


@pytest.mark.parametrize("branch", TEACHERS)
def test_heads_divide_among_the_devices_of_the_profile_and_not_among_sixteen(branch: str) -> None:
    config = AutoConfig.for_model(**config_json(TEACHERS[branch]))
    check_plan(config, group_size(branch))
    # Eight key-value heads: over two nodes of eight a teacher cannot be cut, replicas are for that.
    with pytest.raises(BadInputError, match="num_key_value_heads 8"):
        check_plan(config, 16)
