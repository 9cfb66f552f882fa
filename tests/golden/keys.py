"""The keys of all steps of all profiles, as the golden file holds them.

What a profile finds on the machine (a Python version's documentation, files, packages) is replaced by a constant: the
golden file is about the recipes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.dag import build
from flows.profiles import CONFIGS, load_profile
from tasks.artifacts.frozen import Frozen

FILE = Path(__file__).with_name("keys.json")
CONTENT = "0" * 64
Keys = dict[str, dict[str, str]]
"""Profile → label → key."""


def profile_names() -> list[str]:
    """All profiles of the repository."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def _sources(base: type[Frozen] = Frozen) -> Iterator[type[Frozen]]:
    for kind in base.__subclasses__():
        if "content_sha256" in kind.model_fields and "with_identity" in vars(kind):
            yield kind
        yield from _sources(kind)


@contextmanager
def constant_content() -> Iterator[None]:
    """Every source that is identified by its content has the same content in this block."""

    def with_identity(source: Any) -> Any:
        return source.model_copy(update={"content_sha256": CONTENT})

    real = {kind: vars(kind)["with_identity"] for kind in set(_sources())}
    for kind in real:
        kind.with_identity = with_identity  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for kind, method in real.items():
            kind.with_identity = method  # type: ignore[attr-defined]


def keys_of(profile: str, *, smoke: bool = False) -> dict[str, str]:
    """Key of each step of a profile."""
    with constant_content():
        return {step.label: step.key for step in build(load_profile(profile, smoke=smoke))}


def golden() -> Keys:
    """What the file holds."""
    keys: Keys = json.loads(FILE.read_text())
    return keys


def write() -> None:
    """Rewrites the file from the profiles as they are."""
    keys = {profile: keys_of(profile) for profile in profile_names()}
    FILE.write_text(json.dumps(keys, indent=1, sort_keys=True) + "\n")
