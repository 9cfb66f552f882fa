"""Single rows of a stored model's embedding and head, read without the rest of the model.

Of a donor with 8 billion parameters these two matrices are 2 GB of 16. Of a reference to the hub only the files that
hold them are fetched.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tasks.artifacts.errors import BadInputError
from tasks.modeling.hub import referenced
from tasks.modeling.model_files import empty_causal_lm, read_json

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_CHUNK_ROWS = 8192
"""Rows read at once: 84 MB of a matrix of width 5120 in bfloat16."""


@dataclass(frozen=True)
class StoredVocabulary:
    """The embedding of a model on disk and, where it is not tied, its head."""

    names: tuple[str, ...]
    """Of the tensors: the embedding's, then the head's if it has one of its own."""
    files: tuple[Path, ...]
    num_rows: int

    @property
    def tied(self) -> bool:
        return len(self.names) == 1

    def rows(self, matrix: int, ids_N: Tensor) -> Tensor:
        """Rows `ids_N` (int64) of the embedding (matrix 0) or the head (1), (N, D) in the stored dtype."""
        order_N = torch.argsort(ids_N)
        sorted_N = ids_N[order_N]
        parts = []
        with safe_open(self.files[matrix], framework="pt") as file:
            stored = file.get_slice(self.names[matrix])
            for start in range(0, self.num_rows, _CHUNK_ROWS):
                first, last = torch.searchsorted(sorted_N, torch.tensor([start, start + _CHUNK_ROWS])).tolist()
                if last > first:
                    parts.append(stored[start : start + _CHUNK_ROWS][sorted_N[first:last] - start])
            width = stored.get_shape()[1]
        rows_ND = torch.cat(parts) if parts else torch.empty((0, width))
        return rows_ND[torch.argsort(order_N)]


def stored_vocabulary(directory: Path) -> StoredVocabulary:
    """Finds the two matrices of the model in `directory`, or of the one that its reference.json names.

    Raises:
        BadInputError: there is no config.json, or no safetensors that hold them.
    """
    names = described_vocabulary(directory).names
    where = referenced(directory, [_INDEX, _SINGLE])
    if (where / _INDEX).is_file():
        file_of: dict[str, str] = read_json(where / _INDEX)["weight_map"]
    elif (where / _SINGLE).is_file():
        file_of = dict.fromkeys(names, _SINGLE)
    else:
        raise BadInputError(
            f"the donor in {where} has no safetensors (pickles are not read), and this method needs its embedding; "
            f"give a donor with weights or set recipe.method to composed"
        )
    missing = [name for name in names if name not in file_of]
    if missing:
        raise BadInputError(f"the weights in {where} have no tensor {missing[0]}, as their config.json promises")
    where = referenced(directory, sorted({file_of[name] for name in names}))
    files = tuple(where / file_of[name] for name in names)
    with safe_open(files[0], framework="pt") as file:
        num_rows = file.get_slice(names[0]).get_shape()[0]
    return StoredVocabulary(names, files, num_rows)


@dataclass(frozen=True)
class DescribedVocabulary:
    """The embedding and the head as config.json promises them."""

    names: tuple[str, ...]
    """As of a StoredVocabulary."""
    num_rows: int

    @property
    def tied(self) -> bool:
        return len(self.names) == 1


def described_vocabulary(directory: Path) -> DescribedVocabulary:
    """What the config.json of the model in `directory`, or of the one that its reference.json names, says of the two.

    Raises:
        BadInputError: there is no config.json.
    """
    source = directory if (directory / "config.json").is_file() else referenced(directory, ["config.json"])
    if not (source / "config.json").is_file():
        raise BadInputError(
            f"the donor in {directory} is a tokenizer without a model, and this method needs its embedding; give a "
            f"donor with weights or set recipe.method to composed"
        )
    model: Any = empty_causal_lm(source)
    by_weight = {id(weight): name for name, weight in model.named_parameters()}
    weights = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    return DescribedVocabulary(tuple(dict.fromkeys(by_weight[id(weight)] for weight in weights)), len(weights[0]))
