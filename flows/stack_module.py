"""A module of this project run as a program in a stack's environment, not the shell's.

In a process of its own: Prefect and s3fs read their settings once, when they are imported or a client is made.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Ran:
    """How a program ended."""

    out: str
    err: str
    fault: str | None
    """What it said last, where it failed."""


def run_module(module: str, *arguments: str, environment: Mapping[str, str], seconds: float) -> Ran:
    """Runs `python -m module …` to its end, or for `seconds`."""
    command = [sys.executable, "-m", module, *arguments]
    try:
        result = subprocess.run(
            command, env=dict(environment), capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return Ran("", "", f"no answer in {seconds:.0f} s")
    failed = result.returncode != 0
    return Ran(result.stdout, result.stderr, last_lines(result.stdout + result.stderr) if failed else None)


def last_lines(text: str) -> str:
    """The last lines of a log as one: what broke is often wrapped."""
    return " ".join(" ".join(text.strip().splitlines()[-3:]).split()) or "it printed nothing"
