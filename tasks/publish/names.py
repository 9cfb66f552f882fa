"""What a card calls a source. A path says how a machine is laid out and stays there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HASH = 12


def folder_name(label: str, content_sha256: str | None) -> str:
    """Of a model in a folder: the profile's name for it, and the beginning of the hash of its content."""
    content = f", content {content_sha256[:_HASH]}" if content_sha256 else ""
    return f"{label.removeprefix('model-')} (a folder{content})"


def file_names(paths: Iterable[str]) -> str:
    """Of files or globs: their last parts."""
    return ", ".join(PurePath(path).name for path in paths)


def repository(name: str) -> str | None:
    """The name itself where it can be a repository of the hub, OWNER/NAME."""
    return name if _REPOSITORY.fullmatch(name) else None


def served_name(name: str) -> str:
    """Of a model behind a server, which by default calls it by the path that it was loaded from."""
    return repository(name) or PurePath(name).name
