"""A Prefect server of its own for a session's runs, over a database that outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from flows.stack_processes import wait_until
from flows.stack_services import HOST, answers
from tests.e2e.micro_run import environment
from tests.seaweed import free_ports

START_SECONDS = 300
"""As for a stack: what a machine with ten times more work than processors has been seen to need, and half as much."""


class PrefectServer:
    """One server on loopback. It can be killed and started again at the same port over the same database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Those of free_ports follow one another: this one is beyond what the S3 servers of a session take.
        self.port = free_ports(40)[-1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What a run needs to tell this server of itself."""
        return {"PREFECT_API_URL": f"http://{HOST}:{self.port}/api", "PREFECT_HOME": str(self.folder)}

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.folder / "server.log"

    def start(self) -> None:
        """Starts it and waits until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        own = {
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
            "PREFECT_HOME": str(self.folder),
            "DO_NOT_TRACK": "1",
        }
        with self.log.open("ab") as output:
            self.process = process = subprocess.Popen(
                [sys.executable, "-m", "flows.sqlite_server", "--host", HOST, "--port", str(self.port)],
                env=environment(own),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        up = wait_until(lambda: process.poll() is not None or answers(self.port, "/api/health", 200), START_SECONDS)
        if not up or process.poll() is not None:
            said = self.log.read_text(errors="replace")[-2000:]
            self.kill()
            raise RuntimeError(f"the Prefect server did not come up: {said}")

    def kill(self) -> None:
        """kill -9 of all its processes, and waits for the end."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
