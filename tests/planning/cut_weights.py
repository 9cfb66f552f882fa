"""Bytes that the first of some processes holds of each teacher: `python -m tests.planning.cut_weights DIRECTORY …`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from tasks.dump_logits.teacher import Teacher
from tasks.dump_logits.teacher_recipe import TeacherRecipe
from tasks.dump_logits.tensor_group import Place, TensorGroup


def _held(tensor: Tensor) -> tuple[int, int]:
    """Address and bytes of the part that is here; on a CPU it may be a view into the mapped file."""
    here = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return here.data_ptr(), here.numel() * here.element_size()


def _bytes(path: Path, device: torch.device, group: TensorGroup) -> int:
    rows = json.loads((path / "config.json").read_text())["vocab_size"]
    teacher = Teacher(path, TeacherRecipe(dtype="bfloat16", attention="sdpa"), device, rows, group)
    held = dict(_held(parameter.data) for parameter in teacher.model.parameters())
    if group.leads:
        held |= dict([_held(teacher.head.weight_VD)])
    return sum(held.values())


def main(directories: list[str]) -> None:
    """Prints the bytes of this process, as JSON."""
    device = torch.device("cpu")
    group = TensorGroup(Place.of_environment(int(os.environ["WORLD_SIZE"])), device)
    print(json.dumps({directory: _bytes(Path(directory), device, group) for directory in directories}))


if __name__ == "__main__":
    main(sys.argv[1:])
