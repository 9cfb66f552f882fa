"""Whole runs of the profile micro by the installed command, each in a folder of its own.

The scratch folder and Prefect's home are relative to the working folder: two such runs share only the machine.
"""

from __future__ import annotations

import functools
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from flows.dag import build
from flows.profiles import load_profile
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.manifest import Manifest
from tasks.artifacts.store import open_store
from tasks.runtime.declare import Step
from tasks.runtime.gates import Verdict, read_verdict

MEDIUS = Path(sys.executable).with_name("medius")


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's, without what it says of Prefect."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {**own, **(more or {})}


@functools.cache
def micro_steps() -> tuple[Step, ...]:
    """The steps of the profile."""
    return tuple(build(load_profile("micro")))


@dataclass(frozen=True)
class MicroRun:
    """A folder in which micro was run, and what the last run there said."""

    folder: Path
    store: str
    code: int
    out: str
    err: str
    seconds: float

    def manifests(self) -> dict[str, Manifest]:
        """Manifest of each finished step, by label."""
        store = open_store(self.store)
        found = {step.label: Artifact(store, step.directory).manifest() for step in micro_steps()}
        return {label: manifest for label, manifest in found.items() if manifest is not None}

    def verdicts(self) -> dict[str, Verdict | None]:
        """What the gates said of each step, by label."""
        store = open_store(self.store)
        return {step.label: read_verdict(Artifact(store, step.directory)) for step in micro_steps()}

    def digests(self) -> dict[str, str]:
        """Digest of each finished step, by label."""
        return {label: manifest.digest for label, manifest in self.manifests().items()}

    def prefect(self, query: str) -> list[tuple[Any, ...]]:
        """Rows of Prefect's own database, which is a file in the folder."""
        with closing(sqlite3.connect(self.folder / ".medius" / "prefect" / "prefect.db")) as database:
            return database.execute(query).fetchall()


def run_micro(folder: Path, store: str, more: Mapping[str, str] | None = None) -> MicroRun:
    """Runs micro to its end."""
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    result = subprocess.run(
        [MEDIUS, "run", "micro", "--store", store],
        cwd=folder,
        env=environment(more),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    return MicroRun(folder, store, result.returncode, result.stdout, result.stderr, time.monotonic() - start)


def undisturbed_run(base: Path, more: Mapping[str, str] | None = None) -> MicroRun:
    """The run that all others are compared with: on local disk, from nothing, without a fault. Once a session.

    `base` is the session's folder, or that of one of its processes, which share the run. `more` are variables beyond
    this process's.
    """
    if "PYTEST_XDIST_WORKER" in os.environ and base.name.startswith("popen-"):
        base = base.parent
    folder = base / "undisturbed"
    record = base / "undisturbed.json"
    with FileLock(base / "undisturbed.lock"):
        if not record.exists():
            run = run_micro(folder, str(folder / "store"), more)
            assert run.code == 0, run.err
            record.write_text(json.dumps([run.code, run.out, run.err, run.seconds]))
        return MicroRun(folder, str(folder / "store"), *json.loads(record.read_text()))
