"""Weights in another form, a file of safetensors at a time: the model is never whole in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tasks.artifacts.errors import BadInputError
from tasks.modeling.weight_files import MAX_FILE_BYTES

_LAYER = re.compile(r"^model\.layers\.(\d+)\.")
_WITH_BIAS = re.compile(r"\.self_attn\.[qkv]_proj\.weight$")


def reshaped(
    directory: Path, *, keep_layers: Sequence[int] | None, biases: bool, dtype: torch.dtype | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of the result by name, one by one, in the order of the source's files and names.

    `biases` adds a zero bias of shape (out,) to every q, k and v projection.
    """
    new_index = None if keep_layers is None else {old: new for new, old in enumerate(keep_layers)}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                renamed = _renamed(name, new_index)
                if renamed is None:
                    continue
                tensor = file.get_tensor(name)
                if dtype is not None and tensor.is_floating_point():
                    tensor = tensor.to(dtype)
                yield renamed, tensor
                if biases and _WITH_BIAS.search(renamed):
                    yield renamed.removesuffix("weight") + "bias", torch.zeros(tensor.shape[0], dtype=tensor.dtype)


def _renamed(name: str, new_index: Mapping[int, int] | None) -> str | None:
    """The tensor's name in the result; None if its layer goes."""
    match = _LAYER.match(name)
    if new_index is None or match is None:
        return name
    layer = new_index.get(int(match[1]))
    return None if layer is None else f"model.layers.{layer}.{name[match.end() :]}"


def write_tensors(
    tensors: Iterator[tuple[str, torch.Tensor]], target: Path, *, max_bytes: int = MAX_FILE_BYTES
) -> tuple[int, set[torch.dtype]]:
    """Writes model.safetensors, or numbered files of at most `max_bytes` with an index, as transformers names them. No
    more than one file's tensors are held in memory.

    Returns:
        The number of parameters, and the dtypes they have.

    Raises:
        BadInputError: there is none.
    """
    parts: list[Path] = []
    index: dict[str, int] = {}
    held: dict[str, torch.Tensor] = {}
    num_bytes = total = num_parameters = 0
    dtypes: set[torch.dtype] = set()

    def flush() -> None:
        parts.append(target / f"part-{len(parts):05d}.safetensors")
        save_file(held, parts[-1], metadata={"format": "pt"})
        held.clear()

    for name, tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if held and num_bytes + size > max_bytes:
            flush()
            num_bytes = 0
        held[name] = tensor.contiguous()
        index[name] = len(parts)
        num_bytes, total, num_parameters = num_bytes + size, total + size, num_parameters + tensor.numel()
        dtypes.add(tensor.dtype)
    if not index:
        raise BadInputError("the model has no tensors as safetensors; pickles are not read, so convert it first")
    flush()
    if len(parts) == 1:
        parts[0].rename(target / "model.safetensors")
        return num_parameters, dtypes
    names = [f"model-{number:05d}-of-{len(parts):05d}.safetensors" for number in range(1, len(parts) + 1)]
    for part, name in zip(parts, names, strict=True):
        part.rename(target / name)
    weight_map = {name: names[part] for name, part in sorted(index.items())}
    metadata = {"total_parameters": num_parameters, "total_size": total}
    (target / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    return num_parameters, dtypes
