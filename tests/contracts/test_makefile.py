"""What a target's tests need is installed by that target: a test that is always skipped shows nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", ["test-slow", "bench"])
def test_the_tests_of_the_real_vocabularies_find_them(target: str) -> None:
    commands = subprocess.run(
        ["make", "--dry-run", "--always-make", target],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "--no-deps llama-models==" in commands
    assert "smollm2" in commands, "the extra with Qwen2.5's tokenizer"
