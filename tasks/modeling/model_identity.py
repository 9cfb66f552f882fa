"""Which objects of an artifact are the model, so that two artifacts can be told to hold the same one. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tasks.artifacts.fingerprint import content_digest
from tasks.artifacts.manifest import ObjectRecord

_NAMES = {
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "reference.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
}


def is_model_file(name: str) -> bool:
    """Whether an object is read where the model is loaded: weights, configs, tokenizer. Logs and records are not."""
    return name in _NAMES or ("/" not in name and name.endswith(".safetensors"))


def model_digest(objects: Iterable[ObjectRecord]) -> str:
    """Hex sha256 over the names and contents of the model's files: equal ones give equal answers."""
    return content_digest((entry.name, entry.sha256) for entry in objects if is_model_file(entry.name))


def first_alike(models: Mapping[str, Iterable[ObjectRecord]]) -> dict[str, str]:
    """For each model whose files an earlier one has too: the name of the first that has them."""
    first: dict[str, str] = {}
    found = {name: first.setdefault(model_digest(objects), name) for name, objects in models.items()}
    return {name: other for name, other in found.items() if name != other}
