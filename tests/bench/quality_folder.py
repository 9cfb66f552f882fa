"""Where the comparison of a student with its twin keeps what it makes: a folder for each state of the code it judges.

A finished training is found again by the key of its recipe, which says nothing of the code that trained. In one folder
for all states a change that makes students worse would be answered with those made before it.
"""

from __future__ import annotations

from pathlib import Path

from tasks.artifacts.fingerprint import content_digest, file_sha256
from tests.bench.paths import BENCH, ROOT

SOURCES = (
    "tasks/distill/**/*.py",
    "tasks/logits/**/*.py",
    "tasks/training/**/*.py",
    "tests/bench/quality_*.py",
    "configs/deepspeed/*.json",
)
"""Patterns below the checkout."""


def sources_digest(root: Path, patterns: tuple[str, ...] = SOURCES) -> str:
    """Hex sha256 over names and contents of the files below `root` that the patterns name.

    Raises:
        ValueError: a pattern names none, as after a move.
    """
    named = {pattern: [path for path in root.glob(pattern) if path.is_file()] for pattern in patterns}
    if lost := [pattern for pattern, paths in named.items() if not paths]:
        raise ValueError(f"{root} has no file {', '.join(lost)}; name in SOURCES where that code is now")
    paths = {path for found in named.values() for path in found}
    return content_digest((path.relative_to(root).as_posix(), file_sha256(path)) for path in paths)


FOLDER = BENCH / "quality" / sources_digest(ROOT)[:16]
