"""Real servers for the rows of how runs are operated, and commands that run against them."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import s3fs

from flows.prefect_api import PrefectApi
from tests.bench.paths import ROOT
from tests.e2e.micro_run import environment
from tests.faults.prefect_server import PrefectServer
from tests.seaweed import BUCKET, SeaweedServer

MOST_SECONDS = 3600


@dataclass(frozen=True)
class Operated:
    """One Prefect server and one bucket."""

    folder: Path
    prefect: PrefectServer
    seaweed: SeaweedServer

    @property
    def variables(self) -> dict[str, str]:
        """What a run needs, and a program of the bench beside it."""
        own = environment({**self.prefect.environment, **self.seaweed.environment, "PYTHONPATH": str(ROOT)})
        # A shell that keeps no bytecode has each process compile the 200 modules that a run imports: 0.3 CPU-seconds,
        # which no installation pays twice.
        own.pop("PYTHONDONTWRITEBYTECODE", None)
        return own

    @property
    def api(self) -> PrefectApi:
        """The Prefect server's."""
        return PrefectApi.of(self.prefect.environment)

    def store(self, name: str) -> str:
        """A store in the bucket."""
        return f"s3://{BUCKET}/{name}"

    def start(self, command: Sequence[str | Path], name: str) -> subprocess.Popen[bytes]:
        """Begins a command in a folder of its own; what it prints stands in <name>.txt."""
        working = self.folder / name
        working.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{name}.txt").open("wb") as output:
            return subprocess.Popen(
                command, cwd=working, env=self.variables, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def said(self, name: str) -> str:
        """What it printed."""
        return (self.folder / f"{name}.txt").read_text(errors="replace")

    def run(self, command: Sequence[str | Path], name: str) -> None:
        """Runs a command to its end. Raises RuntimeError where it fails."""
        if code := self.start(command, name).wait(MOST_SECONDS):
            raise RuntimeError(f"{name} ended with {code}: {self.said(name)[-600:]}")

    def task_states(self) -> list[str]:
        """Names of the states of all task runs."""
        return [str(task["state_name"]) for task in self.api.everything("/task_runs/filter", {})]

    def flow_states(self) -> list[str]:
        """Types of the states of all flow runs."""
        return [str(run["state_type"]) for run in self.api.everything("/flow_runs/filter", {})]


@contextmanager
def servers() -> Iterator[Operated]:
    """Both, empty, until the block ends; this process's environment leads to the S3 server meanwhile."""
    with tempfile.TemporaryDirectory(prefix="medius-ops-") as name:
        folder = Path(name)
        prefect, seaweed = PrefectServer(folder / "prefect"), SeaweedServer(folder / "seaweed")
        before = dict(os.environ)
        try:
            seaweed.start()
            os.environ.update(seaweed.environment)
            s3fs.S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)
            prefect.start()
            yield Operated(folder, prefect, seaweed)
        finally:
            prefect.kill()
            seaweed.kill()
            os.environ.clear()
            os.environ.update(before)
