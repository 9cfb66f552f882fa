"""Where the surgery bench keeps what it makes, so that one that was stopped goes on.

An artifact is found again by its key, which says nothing of the code that made it nor of the machine that timed it. So
the folder is one of these sources on this machine: after a change of either the bench begins afresh. The harness
deletes it when the whole group has been measured.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from tests.bench.harness import machine, unfinished
from tests.bench.paths import ROOT
from tests.bench.quality_folder import sources_digest

SOURCES = (
    "tasks/surgeon/**/*.py",
    "tasks/modeling/**/*.py",
    "tasks/models/**/*.py",
    "tasks/corpus/**/*.py",
    "tasks/sft/**/*.py",
    "tasks/training/**/*.py",
    "tasks/compare/arithmetic.py",
    "tasks/exercises/library_text.py",
    "configs/deepspeed/*.json",
    "tests/bench/surgery_*.py",
    "tests/bench/swap_*.py",
    "tests/bench/rows_surgery.py",
    "tests/bench/quality_documents.py",
    "tests/bench/timing.py",
)
"""Patterns below the checkout."""
VERSIONED = ("transformers", "tokenizers", "mergekit", "deepspeed", "lm_eval")
"""Beside those that every row names."""
VARIABLE = "MEDIUS_BENCH_SURGERY"
"""In the environment of a process that a bench starts: that bench's folder, whatever has changed since it began."""


@lru_cache(maxsize=1)
def folder() -> Path:
    """This process's, below the checkout; the sources are read on the first call."""
    given = os.environ.get(VARIABLE)
    return Path(given) if given else unfinished("surgery") / name_of(ROOT, machine())


def name_of(root: Path, on: str) -> str:
    """Of the folder for the sources below `root`, on a machine that `machine()` describes as `on`."""
    installed = " ".join(f"{package} {version(package)}" for package in VERSIONED)
    return f"{sources_digest(root, SOURCES)[:16]}-{hashlib.sha256(f'{on} {installed}'.encode()).hexdigest()[:8]}"


def delete_others() -> None:
    """What stopped benches of other sources left: tens of gigabytes that no bench would read."""
    for found in unfinished("surgery").glob("*"):
        if found != folder():
            shutil.rmtree(found)


def write_once(file: Path, text: str) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{os.getpid()}.draft")
    draft.write_text(text, encoding="utf-8")
    draft.rename(file)
