"""A real Prefect server that wants a password, and workers of its pools; nothing of `medius up`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flows.prefect_api import PrefectApi
from flows.stack_services import Ports, answers, prefect_command
from tests.seaweed import free_ports

ROOT = Path(__file__).parents[2]
PASSWORD = "medius:word for Word$1"


class GuardedServer:
    """One server in a folder, until `stop`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = Ports(prefect=free_ports(20)[-1])
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": self.ports.api,
            "PREFECT_API_AUTH_STRING": PASSWORD,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "MEDIUS_STORE": str(folder / "store"),
            "PYTHONPATH": str(ROOT),
        }
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def api(self) -> PrefectApi:
        return PrefectApi.of(self.environment)

    def start(self) -> None:
        self._begin("server", prefect_command(self.ports), {"PREFECT_SERVER_API_AUTH_STRING": PASSWORD})
        self.wait(lambda: answers(self.ports.prefect, "/api/health", 200), 300, "the server")

    def start_worker(self, pool: str, start: Sequence[str] = ("prefect", "worker", "start")) -> subprocess.Popen[bytes]:
        """A worker, by the module that starts one."""
        command = [sys.executable, "-m", *start, "--pool", pool, "--name", f"test-{pool}"]
        return self._begin(f"worker-{pool}", command, {"PREFECT_WORKER_QUERY_SECONDS": "2"})

    def kill_workers(self) -> None:
        """kill -9 of all workers, and of nothing that they started."""
        _server, *workers = self._processes
        for worker in workers:
            worker.kill()
            worker.wait()

    def _begin(self, name: str, command: list[str], more: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env={**self.environment, **more}, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self._processes.append(process)
        return process

    def module(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A module of the project against this server."""
        return subprocess.run(
            [sys.executable, "-m", *arguments], cwd=self.folder, env={**self.environment, **environment},
            capture_output=True, text=True, check=False, timeout=900,
        )  # fmt: skip

    def wait(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(f"{log}: {log.read_text()[-2000:]}" for log in sorted(self.folder.glob("*.log")))
                raise AssertionError(f"{what} did not come in {seconds:.0f} s\n{logs}")
            time.sleep(0.2)

    def stop(self) -> None:
        """Workers end before the server that they tell of it."""
        for process in reversed(self._processes):
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@contextmanager
def guarded_server(folder: Path) -> Iterator[GuardedServer]:
    """One that runs until the block ends."""
    server = GuardedServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
