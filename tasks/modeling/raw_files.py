"""What tokenizer.json and safetensors files say of themselves, read without the libraries that load them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.artifacts.errors import BadInputError


def largest_id(tokenizer: Mapping[str, Any]) -> int:
    """The largest id of a tokenizer.json, whose vocabulary is a mapping or (Unigram) a list; -1 if it has none."""
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
    return max([*ids, *(entry["id"] for entry in tokenizer.get("added_tokens") or ())], default=-1)


def tensor_entries(file: Path, where: str) -> dict[str, dict[str, Any]]:
    """dtype, shape and place of every tensor of a safetensors file, from its header: 8 bytes of length, then JSON.

    Raises:
        BadInputError: it has no such header. `where` is what the message calls the folder.
    """
    try:
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        return {name: tensor for name, tensor in header.items() if name != "__metadata__"}
    except (ValueError, MemoryError, OverflowError, AttributeError) as error:
        raise BadInputError(f"{file.name} of {where} is no safetensors file; export the model again") from error
