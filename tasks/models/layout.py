"""What may be in a model's folder, read without any deep-learning library."""

from __future__ import annotations

import json
import math
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import content_digest, file_sha256
from tasks.modeling.legal_files import LEGAL_FILES
from tasks.modeling.raw_files import largest_id, tensor_entries

ALLOWED_FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "tokenizer.model", *LEGAL_FILES)
"""Weights as safetensors, configs, tokenizers and licences. Pickles and Python files run code when they are loaded."""
WEIGHTS = "*.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def model_files(directory: Path) -> list[Path]:
    """The files at the folder's root that make the model, sorted by name; anything else there is left out."""
    return sorted(
        path for path in directory.iterdir() if path.is_file() and any(fnmatch(path.name, p) for p in ALLOWED_FILES)
    )


def check_model(directory: Path, *, weights: bool, where: str) -> None:
    """Refuses a folder that later stages could not use.

    Raises:
        BadInputError: no config, no tokenizer.json, or (if `weights` are wanted) none as safetensors.
    """
    names = {path.name for path in directory.iterdir()}
    if "config.json" not in names:
        raise BadInputError(f"{where} has no config.json, so it is no model; give the folder or repository of a model")
    if "tokenizer.json" not in names:
        raise BadInputError(
            f"{where} has no tokenizer.json; load its tokenizer once with transformers' AutoTokenizer, save it, and "
            f"add the tokenizer.json that this writes"
        )
    if not weights:
        return
    if not any(fnmatch(name, WEIGHTS) for name in names):
        pickles = sorted(name for name in names if any(fnmatch(name, pattern) for pattern in _PICKLES))
        found = f"only pickles ({pickles[0]})" if pickles else "none"
        raise BadInputError(
            f"{where} has no weights as safetensors, {found}; loading a pickle runs code, so convert it with "
            f"save_pretrained(safe_serialization=True) or pin a revision that has safetensors"
        )
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        missing = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) - names)
        if missing:
            raise BadInputError(f"{where} lacks {missing[0]}, which its index names; complete the download")


def files_sha256(files: list[Path]) -> str:
    """Identity of a model's files: over their names and contents."""
    return content_digest((path.name, file_sha256(path)) for path in files)


def complete_generation_config(directory: Path) -> None:
    """Writes generation_config.json from the token ids of config.json where a repository has none."""
    target = directory / "generation_config.json"
    if target.exists():
        return
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    ids = {name: config[name] for name in _TOKEN_IDS if config.get(name) is not None}
    target.write_text(json.dumps(ids, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def describe(directory: Path) -> dict[str, Any]:
    """parameters (None without weights), bytes, rows of the embedding (None without a config), and vocab_size, which is
    the largest id plus one.

    Raises:
        BadInputError: weights are no safetensors file.
    """
    weights = [path for path in model_files(directory) if fnmatch(path.name, WEIGHTS)]
    stored = directory / "config.json"
    config = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
    tokenizer = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    tensors = [tensor for path in weights for tensor in tensor_entries(path, "the model").values()]
    return {
        "parameters": sum(math.prod(tensor["shape"]) for tensor in tensors) if weights else None,
        "bytes": sum(path.stat().st_size for path in model_files(directory)),
        "rows": config.get("vocab_size"),
        "vocab_size": largest_id(tokenizer) + 1,
    }
