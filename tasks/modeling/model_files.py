"""Causal language models in directories: safetensors, config.json, generation_config.json, tokenizer files.

A directory may hold the weights or only `reference.json` {repo, revision}; then they are fetched from the hub on the
machine that needs them. Equal models are written as equal bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from tasks.artifacts.errors import BadInputError
from tasks.modeling.hub import referenced
from tasks.modeling.tokenizer_files import TOKENIZER_FILES, load_tokenizer, reloads_exactly, save_tokenizer
from tasks.modeling.weight_files import MAX_FILE_BYTES

TOKEN_ID_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def weights_directory(directory: Path) -> Path:
    """The directory that has the weights: itself, or the hub's snapshot that its reference.json names.

    Raises:
        BadInputError, TransientStoreError: as tasks/modeling/hub.py.
    """
    return referenced(directory, ["*.safetensors", "*.json", "*.jinja", "*.txt"])


def load_causal_lm(
    directory: Path,
    *,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    attn_implementation: str = "sdpa",
) -> PreTrainedModel:
    """The model in eval mode, with every weight from the directory. Runs no code from there.

    No row of its embedding is `padding_idx`: torch gives that one no gradient, and where an end token stands in for
    padding it is a row to be learnt.

    Raises:
        BadInputError: there is no config.json, or the weights are not those that it asks for: one is missing, has
            another shape, or is not of this architecture.
    """
    source = weights_directory(directory)
    _require_config(source)
    device = torch.device(device)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source,
        device_map=None if device.type == "cpu" else {"": device},
        dtype=dtype,
        attn_implementation=attn_implementation,
        use_safetensors=True,
        trust_remote_code=False,
        # Told below, with the directory; by itself this is a report on stderr, or an exception without names.
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    model: PreTrainedModel = loaded[0]
    check_loaded(model, loaded[1], source)
    embedding = model.get_input_embeddings()
    if isinstance(embedding, torch.nn.Embedding):
        embedding.padding_idx = None
    model.eval()
    return model


def _require_config(directory: Path) -> None:
    if not (directory / "config.json").is_file():
        raise BadInputError(f"{directory} has no config.json, so it is no model directory; give one of a model")


def check_loaded(model: PreTrainedModel, found: Mapping[str, Any], source: Path) -> None:
    """Refuses weights of which transformers made up some, or left some out. A tied head counts as there, and what the
    architecture ignores by design as not there."""
    missing, unexpected = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    if getattr(model, "hf_quantizer", None) is not None:
        # What stands beside a quantised weight, such as a scale, is the quantiser's affair.
        parameters = dict(model.named_parameters())
        missing, unexpected = [name for name in missing if name in parameters], []
    for name, stored, expected in sorted(found["mismatched_keys"]):
        raise BadInputError(
            f"the weights in {source} have {name} in the shape {list(stored)} where their config.json asks for "
            f"{list(expected)}; give the config.json and the weights of one model"
        )
    if missing:
        raise BadInputError(
            f"the weights in {source} lack {missing[0]}{_more(missing)}, which their config.json asks for and which "
            f"would be random; complete the download, or give the config.json that belongs to them"
        )
    if unexpected:
        raise BadInputError(
            f"the weights in {source} have {unexpected[0]}{_more(unexpected)}, which {type(model).__name__} does not "
            f"use; give the config.json that belongs to them, or remove what is no part of the model"
        )


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def empty_causal_lm(directory: Path) -> PreTrainedModel:
    """What config.json of `directory` describes, on the meta device: names and shapes without any weights.

    Raises:
        BadInputError: there is no config.json.
    """
    _require_config(directory)
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return model


def save_causal_lm(model: PreTrainedModel, directory: Path, *, dtype: torch.dtype | None = None) -> None:
    """Writes safetensors (shards of at most 5 GB), config.json and generation_config.json.

    `dtype` converts what is written and leaves the model as it is. Token ids that generation_config lacks are taken
    from the config: a model that does not know its end token generates for ever.
    """
    directory.mkdir(parents=True, exist_ok=True)
    state = None if dtype is None else _converted(model, dtype)
    model.save_pretrained(directory, state_dict=state, max_shard_size=MAX_FILE_BYTES)
    config = read_json(directory / "config.json")
    config["dtype"] = str(dtype or model.dtype).removeprefix("torch.")
    write_config(directory / "config.json", config)
    save_generation_config(directory, getattr(model, "generation_config", None))


def _converted(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The state in another dtype. Tied tensors stay one tensor, or both would be written."""
    done: dict[tuple[int, torch.Size], torch.Tensor] = {}
    state = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in done:
            done[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        state[name] = done[key]
    return state


def save_generation_config(directory: Path, generation: GenerationConfig | None) -> None:
    """Writes generation_config.json with the token ids of `generation` or else of the directory's config.json."""
    config = read_json(directory / "config.json")
    values: dict[str, Any] = {} if generation is None else generation.to_diff_dict()
    for name in TOKEN_ID_FIELDS:
        if values.get(name) is None and config.get(name) is not None:
            values[name] = config[name]
    write_config(directory / "generation_config.json", values)


def stored_dtype(directory: Path) -> torch.dtype:
    """The dtype of the weights as config.json names it; float32 where it does not."""
    config = read_json(weights_directory(directory) / "config.json")
    dtype: torch.dtype = getattr(torch, config.get("dtype") or config.get("torch_dtype") or "float32")
    return dtype


def resolve_device(name: str) -> torch.device:
    """ "auto" is the GPU where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def vocabulary_weights(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    """The embedding and, where it is not tied to it, the head: one or two matrices of (rows, D)."""
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    assert isinstance(embedding, torch.nn.Parameter)
    return [embedding] if head is embedding else [embedding, head]


def copy_tokenizer_files(source: Path, target: Path) -> None:
    """Puts the tokenizer of `source` into `target`, byte for byte where its config.json reloads the same ids.

    Where it does not (another model_type), the tokenizer is saved anew so that it does.
    """
    tokenizer = load_tokenizer(source)
    target.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        (target / name).unlink(missing_ok=True)
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if not reloads_exactly(target):
        save_tokenizer(tokenizer, target)


def num_rows(directory: Path) -> int:
    """Rows of the embedding matrix as config.json has it: at least the tokenizer's largest id plus one."""
    return int(read_json(directory / "config.json")["vocab_size"])


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object."""
    value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return value


def write_config(file: Path, values: dict[str, Any]) -> None:
    """A config as sorted JSON, without the version of the library that wrote it: that is provenance."""
    kept = {name: value for name, value in values.items() if name not in ("transformers_version", "_name_or_path")}
    file.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")
