"""Causal language models in directories: safetensors, config.json, generation_config.json, tokenizer files.

A directory may hold the weights or only `reference.json` {repo, revision}; then they are fetched from the hub on the
machine that needs them. Equal models are written as equal bytes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from tasks.artifacts.errors import BadInputError
from tasks.modeling.tokenizer_files import TOKENIZER_FILES, load_tokenizer, reloads_exactly, save_tokenizer

MAX_SHARD_SIZE = "5GB"
TOKEN_ID_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def weights_directory(directory: Path) -> Path:
    """The directory that has the weights: itself, or the hub's snapshot that its reference.json names."""
    reference = directory / "reference.json"
    if not reference.is_file():
        return directory
    from huggingface_hub import snapshot_download

    target = json.loads(reference.read_text(encoding="utf-8"))
    return Path(
        snapshot_download(
            target["repo"], revision=target["revision"], allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.txt"]
        )
    )


def load_causal_lm(
    directory: Path,
    *,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    attn_implementation: str = "sdpa",
) -> PreTrainedModel:
    """The model in eval mode. Runs no code from the directory.

    Raises:
        BadInputError: there is no config.json, or weights come as pickles.
    """
    source = weights_directory(directory)
    if not (source / "config.json").is_file():
        raise BadInputError(f"{source} has no config.json, so it is no model directory")
    device = torch.device(device)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        source,
        device_map=None if device.type == "cpu" else {"": device},
        dtype=dtype,
        attn_implementation=attn_implementation,
        use_safetensors=True,
        trust_remote_code=False,
    )
    model.eval()
    return model


def save_causal_lm(model: PreTrainedModel, directory: Path, *, dtype: torch.dtype | None = None) -> None:
    """Writes safetensors (shards of at most 5 GB), config.json and generation_config.json.

    `dtype` converts what is written and leaves the model as it is. Token ids that generation_config lacks are taken
    from the config: a model that does not know its end token generates for ever.
    """
    directory.mkdir(parents=True, exist_ok=True)
    state = None if dtype is None else _converted(model, dtype)
    model.save_pretrained(directory, state_dict=state, max_shard_size=MAX_SHARD_SIZE)
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
