"""How the production teachers are cut, by the code that loads them, on the meta device and without other processes."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoConfig, PreTrainedModel
from transformers.distributed import DistributedConfig
from transformers.distributed.tensor_parallel import apply_tensor_parallelism
from transformers.integrations.fbgemm_fp8 import FbgemmFp8Linear
from transformers.quantizers.auto import AutoHfQuantizer

from flows.profiles import load_profile
from tasks.artifacts.errors import BadInputError
from tasks.dump_logits.quantised import whole_scales
from tasks.dump_logits.tensor_group import check_plan
from tasks.planning.architecture import architecture
from tasks.planning.forward_memory import dump_memory
from tests.dump_logits.fbgemm import declare_fbgemm
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


def test_each_device_holds_the_scales_of_its_part_of_an_fp8_teacher() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(_check_scales).result()


def cut(config: dict[str, Any], size: int, rank: int, rules: dict[str, str] | None = None) -> PreTrainedModel:
    """The meta model of a config as one of `size` ranks holds it, in a group that nobody else is in."""
    distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    model = meta_model(config)
    if "quantization_config" in config:
        with torch.device("meta"):
            AutoHfQuantizer.from_config(dict(config["quantization_config"])).preprocess_model(model)
    plan, _, _ = model._resolve_parallel_plans(DistributedConfig(tp_size=size, tp_plan=rules or "auto"))
    apply_tensor_parallelism(model, init_device_mesh("cpu", (size,)), plan)
    distributed.destroy_process_group()
    return model


def _check_part(branch: str) -> None:
    """As the first of the branch's processes."""
    size = group_size(branch)
    config = config_json(TEACHERS[branch]) | {"num_hidden_layers": LAYERS}
    config.pop("quantization_config", None)
    sizes = architecture(config)
    whole = {name: parameter.shape for name, parameter in meta_model(config).named_parameters()}
    model = cut(config, size, 0)

    held = {name: here(parameter.data) for name, parameter in model.named_parameters()}
    for name, part in held.items():
        if len(whole[name]) == 2:
            # Every matrix is cut along one side, evenly.
            assert sorted(a // b for a, b in zip(whole[name], part.shape, strict=True)) == [1, size], name
            assert part.numel() * size == whole[name].numel(), name
    head = model.get_output_embeddings().weight
    leader = 2 * (sum(part.numel() for part in held.values()) - here(head.data).numel() + sizes.end)
    memory = dump_memory(sizes, "bfloat16", tokens=1, row_tokens=1, chunk_tokens=1, tensor_parallel=size)
    # Norms, and the biases that are not cut, are whole on each.
    assert leader == pytest.approx(memory.weights, rel=1e-3)
    assert all(parameter.is_meta for parameter in map(torch.Tensor.detach, held.values()))


def _check_scales() -> None:
    """On every rank, each FBGEMM layer has one scale for each output feature of its part of the weight."""
    declare_fbgemm()
    size = group_size("llama")
    config = config_json(TEACHERS["llama"]) | {"num_hidden_layers": LAYERS}
    # The file names what Meta left out by parts of names; transformers compares whole names of modules.
    skipped = config["quantization_config"]["modules_to_not_convert"]
    names = [name for name, module in meta_model(config).named_modules() if isinstance(module, torch.nn.Linear)]
    left_out = [name for name in names if any(part in name for part in skipped)]
    # Once as Meta did it, and once with attention's o_proj, which is cut by input features too.
    for unquantised in (left_out, [name for name in left_out if "self_attn" not in name or ".layers.0." in name]):
        settings = config["quantization_config"] | {"modules_to_not_convert": unquantised}
        quantised = config | {"quantization_config": settings}
        rules = whole_scales(AutoConfig.for_model(**quantised))
        assert all(_has_scales(cut(quantised, size, rank, rules), size) for rank in range(size))
        # Without the rules transformers leaves every rank but the first without the scales of its down_proj.
        assert not _has_scales(cut(quantised, size, 1), size)


def _has_scales(model: PreTrainedModel, size: int) -> bool:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, FbgemmFp8Linear)}
    assert len(layers) in ((LAYERS - 1) * 3, (LAYERS - 1) * 7)
    for name, layer in layers.items():
        rows, columns = here(layer.weight.detach()).shape
        assert layer.weight.dtype == torch.float8_e4m3fn, name
        by_inputs = name.endswith(("o_proj", "down_proj"))
        assert (rows, columns * size) == (layer.out_features, layer.in_features) or not by_inputs, name
        assert (rows * size, columns) == (layer.out_features, layer.in_features) or by_inputs, name
    return all(
        here(layer.weight_scale.detach()).shape == (here(layer.weight.detach()).shape[0], 1)
        for layer in layers.values()
    )


@pytest.mark.parametrize("branch", TEACHERS)
def test_heads_divide_among_the_devices_of_the_profile_and_not_among_sixteen(branch: str) -> None:
    config = AutoConfig.for_model(**config_json(TEACHERS[branch]))
    check_plan(config, group_size(branch))
    # Eight key-value heads: over two nodes of eight a teacher cannot be cut, replicas are for that.
    with pytest.raises(BadInputError, match="num_key_value_heads 8"):
        check_plan(config, 16)
