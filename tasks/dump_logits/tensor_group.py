"""The processes that hold one teacher together, and who says what they compute.

With `runtime.tensor_parallel` = G the ranks of a launch form groups of G. A group's first rank is its *leader*: it
takes shards, truncates, encodes and commits, as a process with a teacher of its own does. The others *follow*: before
each forward pass the leader sends them its ids, and a word when there is nothing more to do. So nothing else has to be
agreed on: which shard, which batch, when to stop.

What transformers 5.23 makes of `DistributedConfig(tp_plan="auto")` (read, and measured with 2 gloo processes on Llama
and Qwen2): q, k, v, gate and up projections are cut by output features, o and down by input features with an all-reduce
behind, the embedding by vocabulary with an all-reduce, norms are whole on every rank. Hidden states come out as plain
tensors, whole and bit for bit equal on all ranks. lm_head (tied or not) is cut by vocabulary and its logits are
gathered on every rank; here the leader takes the whole matrix once instead (`whole`), so no logits travel. Against one
process a float32 teacher's logits differ by rounding alone (4e-6).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.distributed import DistributedConfig

from tasks.artifacts.errors import BadInputError
from tasks.dump_logits.quantised import whole_scales
from tasks.modeling.model_files import check_loaded, weights_directory

TIMEOUT = timedelta(hours=2)
"""Loading hundreds of gigabytes is not equally fast on all ranks."""
_END, _FORWARD, _IDLE, _LOAD = range(4)


@dataclass(frozen=True)
class Place:
    """Where this process stands in its launch. A worker is what takes shards: a process, or a group with its leader."""

    worker: int
    """Which of the launch's workers it belongs to."""
    num_workers: int
    rank_in_group: int
    group_size: int

    @classmethod
    def of_environment(cls, tensor_parallel: int) -> Place:
        """By what torchrun has set.

        Raises:
            BadInputError: the number of processes is no multiple of `tensor_parallel`.
        """
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if world % tensor_parallel:
            raise BadInputError(
                f"runtime.tensor_parallel is {tensor_parallel}, the launch has {world} processes; set "
                f"runtime.num_processes to a multiple of it and runtime.launcher to torchrun"
            )
        return cls(rank // tensor_parallel, world // tensor_parallel, rank % tensor_parallel, tensor_parallel)


def device_of_rank(device: str) -> torch.device:
    """Where this process computes: by a runtime's `device`, the GPU with its number on the node or the CPU."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


class TensorGroup:
    """This process's group, for as long as the process lives."""

    def __init__(self, place: Place, device: torch.device) -> None:
        """Meets the group's other ranks. Groups of one launch share nothing: each is a world of its own."""
        self.size = place.group_size
        self.leads = place.rank_in_group == 0
        self._device = device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        store, _, _ = next(distributed.rendezvous("env://"))
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=distributed.PrefixStore(f"tensor-group-{place.worker}", store),
            rank=place.rank_in_group,
            world_size=place.group_size,
            timeout=TIMEOUT,
        )

    # What the leader says

    def load(self) -> None:
        """There is work: every rank loads its part of the teacher now."""
        self._send([_LOAD, 0, 0])

    def announce(self, ids_BT: Tensor, mask_BT: Tensor) -> None:
        """Before a forward pass: the others make the same one."""
        self._send([_FORWARD, *ids_BT.shape])
        distributed.broadcast(ids_BT.contiguous(), 0)
        distributed.broadcast(mask_BT.contiguous(), 0)

    def idle(self) -> None:
        """While the leader waits: the others do not take its silence for its death."""
        self._send([_IDLE, 0, 0])

    def end(self) -> None:
        """There is nothing more to do."""
        self._send([_END, 0, 0])

    def _send(self, words: list[int]) -> None:
        distributed.broadcast(torch.tensor(words, dtype=torch.int64, device=self._device), 0)

    # What the others hear

    def hears_load(self) -> bool:
        """Whether there is work; waits for the leader to know."""
        return self._receive()[0] == _LOAD

    def forward_inputs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Ids and mask (B, T) of each forward pass that the leader makes, until the end."""
        while True:
            kind, batch, width = self._receive()
            if kind == _END:
                return
            ids_BT = torch.empty((batch, width), dtype=torch.int64, device=self._device)
            mask_BT = torch.empty_like(ids_BT)
            distributed.broadcast(ids_BT, 0)
            distributed.broadcast(mask_BT, 0)
            yield ids_BT, mask_BT

    def _receive(self) -> list[int]:
        while True:
            words = torch.empty(3, dtype=torch.int64, device=self._device)
            distributed.broadcast(words, 0)
            if words[0] != _IDLE:
                return words.tolist()


def whole(parameter: Tensor) -> Tensor:
    """A parameter that may be cut over the group, put together. Every rank must call it."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def check_plan(config: PretrainedConfig, size: int) -> None:
    """Refuses what cannot be cut over `size` processes, before anything is loaded.

    Raises:
        BadInputError: the architecture has no plan, or its attention heads do not divide.
    """
    if not config.base_model_tp_plan:
        raise BadInputError(
            f"transformers has no tensor-parallel plan for {config.model_type} models; set runtime.tensor_parallel to 1"
        )
    for name in ("num_attention_heads", "num_key_value_heads"):
        count = getattr(config, name, None)
        if isinstance(count, int) and count % size:
            raise BadInputError(
                f"the teacher has {name} {count}, which runtime.tensor_parallel {size} does not divide; choose a "
                f"divisor of it"
            )


def load_cut(directory: Path, *, dtype: torch.dtype, attention: str, size: int) -> PreTrainedModel:
    """The model in eval mode, this rank's part of it: no rank reads or holds the whole. Every rank must call it.

    Raises:
        BadInputError: the weights are not those that config.json asks for, as `load_causal_lm`.
    """
    source = weights_directory(directory)
    scales = whole_scales(AutoConfig.from_pretrained(source, trust_remote_code=False))
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=dtype,
        attn_implementation=attention,
        use_safetensors=True,
        trust_remote_code=False,
        distributed_config=DistributedConfig(tp_size=size, tp_plan=scales or "auto"),
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    model: PreTrainedModel = loaded[0]
    check_loaded(model, loaded[1], source)
    return model.eval()
