"""One interface over `python`, `torchrun` and `deepspeed`: start a worker in its own group, watch it, end it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tasks.runtime.declare import Runtime
from tasks.worker.job import END_FILE, STOP_FILE
from tasks.worker.leash import WATCH_STDIN

LOG_TAIL_LINES = 50


def worker_command(module: str, spec: Path, runtime: Runtime) -> list[str]:
    """The command line for a worker. Multi-node needs `hostfile` (deepspeed) or torchrun's own environment."""
    arguments = ["--spec", str(spec)]
    if runtime.launcher == "python":
        return [sys.executable, "-m", module, *arguments]
    if runtime.launcher == "torchrun":
        # --standalone picks a free port, so parallel branches on one machine cannot meet.
        head = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        return [*head, f"--nproc-per-node={runtime.num_processes}", "--max-restarts=0", "-m", module, *arguments]
    head = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(runtime.num_processes)]
    if runtime.hostfile:
        head = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", runtime.hostfile]
    return [*head, "--module", module, *arguments]


def worker_environment(runtime: Runtime) -> dict[str, str]:
    """The parent's environment with thread counts fixed and everything that would phone home switched off."""
    threads = str(runtime.threads)
    return {
        **os.environ,
        WATCH_STDIN: "1",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "RAYON_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
        # Two dumps or merges of the same inputs must not differ by the order of a set of strings.
        "PYTHONHASHSEED": "0",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        **({"CUDA_VISIBLE_DEVICES": ""} if runtime.device == "cpu" else {}),
    }


class WorkerProcess:
    """A launched worker: the leader of its own process group, tied to this process by the leash."""

    def __init__(self, command: list[str], environment: dict[str, str], scratch: Path) -> None:
        self.log = log = scratch / "worker.log"
        self._scratch = scratch
        with log.open("ab") as output:
            # The thread that calls this must outlive the worker: the parent-death signal is tied to it.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tasks.worker.leash", str(os.getpid()), *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def wait(self, poll: Callable[[], None], poll_seconds: float = 0.2) -> int:
        """Calls `poll` until the worker has ended; returns its exit code (negative: killed by that signal)."""
        while True:
            try:
                code = self._process.wait(timeout=poll_seconds)
            except subprocess.TimeoutExpired:
                poll()
                continue
            poll()
            return code

    def stop(self, grace_seconds: float) -> None:
        """Asks it to save a checkpoint and end (see Job.stop_requested); SIGKILL after the grace period."""
        (self._scratch / STOP_FILE).touch()
        deadline = time.monotonic() + grace_seconds
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        self.kill()

    def kill(self) -> None:
        """Ends the group at once. Ranks in sessions of their own end when their standard input does."""
        if self._process.poll() is None:
            self._signal(signal.SIGKILL)
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    def end(self) -> tuple[int, str] | None:
        """Exit code and last sentence of the rank that failed first, if one came to say so."""
        path = self._scratch / END_FILE
        if not path.exists():
            return None
        said = json.loads(path.read_text())
        return said["code"], said["message"]

    def log_tail(self) -> str:
        """The last lines the worker printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
