"""Whole runs of the profile micro through the command line, as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.runs import last_run
from tasks.artifacts.store import open_store

MEDIUS = [sys.executable, "-m", "flows.cli"]
LIMIT_SECONDS = 400
_OF_PREFECT = ("PREFECT_HOME", "PREFECT_API_URL", "PREFECT_PROFILE")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without anything that would point a run at another Prefect."""
    return {name: value for name, value in os.environ.items() if name not in _OF_PREFECT} | dict(extra or {})


def start_micro(
    folder: Path, store: str, extra: Mapping[str, str] | None = None, command: Sequence[str] = MEDIUS
) -> subprocess.Popen[str]:
    """Starts a run whose scratch space, Prefect home and log lie in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            [*command, "run", "micro", "--store", store],
            cwd=folder,
            env=environment(extra),
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )


def run_micro(folder: Path, store: str, extra: Mapping[str, str] | None = None) -> str:
    """A run to its end; what it printed. Fails the test where it does not exit with 0."""
    process = start_micro(folder, store, extra)
    code = process.wait(LIMIT_SECONDS)
    printed = (folder / "log").read_text()
    assert code == 0, printed[-4000:]
    return printed


def digests(store: str) -> dict[str, str]:
    """Digest of every step of the last run, by label."""
    opened = open_store(store)
    record = last_run(opened, "micro")
    assert record is not None
    found = {}
    for step in record.steps:
        manifest = Artifact(opened, step.directory).manifest()
        assert manifest is not None, f"{step.label} is not finished"
        found[step.label] = manifest.digest
    return found


@dataclass(frozen=True)
class FinishedRun:
    """An undisturbed run, made once for all tests that compare with it."""

    folder: Path
    store: str
    printed: str
