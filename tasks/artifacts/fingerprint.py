"""Identity: canonical JSON, and the hashes made of it.

Two values that mean the same must encode to the same bytes on every machine, and what has no such encoding is
refused: a `default=str` would put a memory address into a key and silently train a model again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

SCHEMA = 1
"""Version of the key's own layout; raising it gives every artifact a new key."""


def canonical_json(value: Any) -> bytes:
    """Encodes None, bool, int, finite float, str, list, tuple, str-keyed mapping and pydantic models.

    Raises:
        TypeError: for any other type, also for a set or a Path.
        ValueError: for NaN and the infinities.
    """
    return json.dumps(_plain(value, "$"), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}, which has no canonical form")
        # 2.0 in YAML and 2 in Python mean the same setting.
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name), f"{where}.{name}") for name in type(value).model_fields}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}; only strings can be hashed as keys")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise TypeError(f"{where} is a {type(value).__name__}, which has no canonical form")


def sha256_hex(data: bytes) -> str:
    """Hex sha256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_sha256(root: Path) -> str:
    """Hex sha256 over the relative names and contents of all files below `root`."""
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return content_digest((name, file_sha256(root / name)) for name in names)


def artifact_key(stage: str, version: int, recipe: Any, input_keys: Mapping[str, str]) -> str:
    """Key of an artifact before it exists: a function of what it means, never of where or when it is made."""
    return sha256_hex(
        canonical_json(
            {"schema": SCHEMA, "stage": stage, "version": version, "recipe": recipe, "inputs": dict(input_keys)}
        )
    )


def content_digest(objects: Iterable[tuple[str, str]]) -> str:
    """Digest of an artifact that exists: over its sorted (logical name, sha256) pairs."""
    return sha256_hex(canonical_json(sorted([name, digest] for name, digest in objects)))
