"""Whether a folder is laid out as transformers, vLLM, SGLang and llama.cpp's converter want it, and what is in it.

Reads configs and the headers of the weights, and loads nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.artifacts.errors import BadInputError
from tasks.modeling.raw_files import largest_id, tensor_entries

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ARCHITECTURES = (
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
)
"""That all four read."""


@dataclass(frozen=True)
class Layout:
    """What a model's folder holds."""

    config: Mapping[str, Any]
    architecture: str
    num_parameters: int
    dtypes: tuple[str, ...]
    """In safetensors' names, such as BF16."""
    has_template: bool
    """Whether the tokenizer can write chats."""


def read_layout(directory: Path, where: str) -> Layout:
    """Checks the folder and describes it. `where` is what messages call it.

    Raises:
        BadInputError: a file is missing, unreadable or does not fit the others.
    """
    config = _json(directory, "config.json", where)
    architecture = _architecture(config, where)
    tensors = _tensors(directory, where)
    rows = config.get("vocab_size")
    if not isinstance(rows, int):
        raise BadInputError(f"config.json of {where} has no vocab_size; export the model with save_pretrained")
    last = largest_id(_json(directory, "tokenizer.json", where))
    if last >= rows:
        raise BadInputError(
            f"the tokenizer of {where} has ids up to {last} and the model {rows} rows; take the tokenizer that belongs "
            f"to it, or add rows"
        )
    _check_end(_json(directory, "generation_config.json", where), rows, where)
    tokenizer_config = directory / "tokenizer_config.json"
    template = tokenizer_config.is_file() and "chat_template" in json.loads(tokenizer_config.read_bytes())
    return Layout(
        config=config,
        architecture=architecture,
        num_parameters=sum(math.prod(tensor["shape"]) for tensor in tensors.values()),
        dtypes=tuple(sorted({tensor["dtype"] for tensor in tensors.values()})),
        has_template=template or (directory / "chat_template.jinja").is_file(),
    )


def with_rope_theta(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with the base of plain rotary embeddings where it was before transformers 5, too.

    What does not know `rope_parameters` (transformers 4, servers and converters of its time) finds no base in them and
    takes its own default, 10,000, without a word; Qwen2.5's is 1,000,000. transformers 5 reads both and the same.
    Scaled embeddings are left as they are.
    """
    rope = config.get("rope_parameters")
    if not isinstance(rope, Mapping) or rope.get("rope_type", "default") != "default" or "rope_theta" not in rope:
        return dict(config)
    return {"rope_theta": rope["rope_theta"], **config}


def _json(directory: Path, name: str, where: str) -> dict[str, Any]:
    file = directory / name
    if not file.is_file():
        raise BadInputError(f"{where} has no {name} at its root; export the model with save_pretrained")
    try:
        content = json.loads(file.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInputError(f"{name} of {where} is no JSON ({error}); export the model again") from error
    if not isinstance(content, dict):
        raise BadInputError(f"{name} of {where} is no JSON object; export the model again")
    return content


def _architecture(config: Mapping[str, Any], where: str) -> str:
    named = config.get("architectures") or []
    if len(named) != 1 or named[0] not in ARCHITECTURES:
        raise BadInputError(
            f"{where} has the architecture {', '.join(map(str, named)) or 'of no name'}, which vLLM, SGLang and "
            f"llama.cpp are not known to read alike; use one of {', '.join(ARCHITECTURES)}, or add it to "
            f"tasks/publish/layout.py when they do"
        )
    return str(named[0])


def _tensors(directory: Path, where: str) -> dict[str, dict[str, Any]]:
    """dtype and shape of every tensor by name."""
    files = {file.name: tensor_entries(file, where) for file in sorted(directory.glob("*.safetensors"))}
    if not files:
        raise BadInputError(f"{where} has no safetensors at its root, so it is no model to publish")
    stored = {tensor: about for header in files.values() for tensor, about in header.items()}
    if not (directory / INDEX).is_file():
        if list(files) != [SINGLE]:
            raise BadInputError(
                f"{where} has the weights {', '.join(files)} and no {INDEX}; without it they are read only as one file "
                f"{SINGLE}"
            )
        return stored
    index = _json(directory, INDEX, where).get("weight_map")
    if not isinstance(index, dict):
        raise BadInputError(f"{INDEX} of {where} has no weight_map; export the model again")
    if absent := sorted(set(map(str, index.values())) - set(files)):
        raise BadInputError(f"{INDEX} of {where} names {absent[0]}, which is not there; complete the weights")
    if extra := sorted(set(files) - set(index.values())):
        raise BadInputError(f"{INDEX} of {where} does not name {extra[0]}, so it would not be loaded; export it again")
    misplaced = [tensor for tensor, file in index.items() if tensor not in files[file]]
    unnamed = [tensor for tensor in stored if tensor not in index]
    for tensor in misplaced + unnamed:
        raise BadInputError(
            f"{INDEX} of {where} and the weights do not agree on the tensor {tensor}; export the model again"
        )
    return stored


def _check_end(generation: Mapping[str, Any], rows: int, where: str) -> None:
    ends = generation.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    if not ends or not all(isinstance(end, int) and 0 <= end < rows for end in ends):
        raise BadInputError(
            f"generation_config.json of {where} has the eos_token_id {generation.get('eos_token_id')!r}, so that its "
            f"answers never end; set it to the tokenizer's end of turn"
        )
