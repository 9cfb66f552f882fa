"""What a manifest says about how, when and where: for people, never part of a key."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = (
    "prefect", "torch", "transformers", "deepspeed", "datasets", "mergekit", "s3fs", "zarr", "lm-eval", "tokenizers",
)  # fmt: skip
_CHECKOUT = Path(__file__).parents[2]


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", *arguments], cwd=_CHECKOUT, capture_output=True, text=True, timeout=20)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


@cache
def git_state() -> tuple[str | None, bool | None]:
    """(commit, whether tracked files differ from it); (None, None) outside a git checkout."""
    sha = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--untracked-files=no")
    return sha, None if status is None else bool(status)


@cache
def package_versions() -> dict[str, str]:
    """Versions of the libraries whose behaviour shows in the results."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """The head node, as far as the standard library can tell."""
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpus": os.cpu_count(),
        "accelerators": accelerators(),
    }


def accelerators(driver: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """Name of each of NVIDIA's devices, as its driver writes it down and torch calls it."""
    found = []
    for file in sorted(driver.glob("*/information")):
        with suppress(OSError):
            lines = file.read_text(errors="replace").splitlines()
            found += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return found
