"""One interface over `python`, `torchrun` and `deepspeed`: start a worker in its own group, watch it, end it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.process_identity import group_is_alive
from tasks.artifacts.redact import redact
from tasks.runtime.declare import Runtime
from tasks.runtime.devices import VISIBLE, Devices
from tasks.runtime.launch_folder import KEEPER
from tasks.runtime.nodes import on_node, start_heartbeat, write_node_file
from tasks.worker.job import END_FILE, STOP_FILE
from tasks.worker.leash import WATCH_STDIN, Heartbeat, ask_to_stop

LOG_TAIL_LINES = 50
_KILL_SECONDS = 30
"""Some hundred GiB of pinned memory take seconds to be given back."""
_EXPORTED_SECRETS = re.compile(r"MLFLOW|PYTHON\w*_")
"""Deepspeed's runner exports what begins with MLFLOW, PYTHON, MV2, UCX or NCCL: MLflow's tokens, and those of whatever
is called PYTHON_…. Python 3.11's own variables have no underscore; the last three are settings of libraries."""


def launch(module: str, spec: Path, runtime: Runtime, devices: Devices | None = None) -> WorkerProcess:
    """Starts a worker on a spec file that lies in the scratch folder of its launch.

    Without `devices` it finds those that this process finds.

    Raises:
        BadInputError: the hostfile is not there; deepspeed would then do with this host alone. Or the worker is to run
            here, in an installation that only orchestrates.
    """
    if runtime.num_nodes == 1 and find_spec("torch") is None:
        raise BadInputError(
            f"this installation has no torch, which {module} needs: give the stage a runtime.pool whose machines have "
            f"it, or install it here with pip install -e '.[worker]'"
        )
    if runtime.hostfile is not None and not Path(runtime.hostfile).is_file():
        raise BadInputError(f"runtime.hostfile is {runtime.hostfile}, but there is no such file; write one line a host")
    scratch = spec.parent
    heartbeat = None
    if runtime.num_nodes > 1:
        write_node_file(scratch, _settings(runtime))
        heartbeat = start_heartbeat(scratch)
    devices = devices or Devices()
    command = worker_command(module, spec, runtime, devices.names)
    return WorkerProcess(command, worker_environment(runtime, devices.names), scratch, heartbeat, devices.locks)


def worker_command(module: str, spec: Path, runtime: Runtime, devices: Sequence[str] = ()) -> list[str]:
    """The command line for a worker. On several nodes each process gets its environment from a file in the scratch."""
    worker = ["-m", module, "--spec", str(spec)]
    if runtime.launcher == "python":
        return [sys.executable, *worker]
    if runtime.launcher == "torchrun":
        head, nodes = [sys.executable], ["--standalone"]
        if runtime.num_nodes > 1:
            head = [*runtime.node_command, *on_node(spec.parent)]
            nodes = [
                f"--nnodes={runtime.num_nodes}",
                "--rdzv-backend=c10d",
                f"--rdzv-endpoint={_endpoint(runtime, spec.parent.name)}",
                f"--rdzv-id={spec.parent.name}",
            ]
        # --standalone picks a free port, so parallel branches on one machine cannot meet.
        count = f"--nproc-per-node={runtime.num_processes}"
        return [*head, "-m", "torch.distributed.run", *nodes, count, "--max-restarts=0", *worker]
    where = ["--num_gpus", str(runtime.num_processes)]
    if devices:
        # With --num_gpus it takes the first ones of the host, whatever CUDA_VISIBLE_DEVICES says.
        where = ["--include", f"localhost:{','.join(devices)}"]
    meet = ["--master_port", str(_free_port())]
    if runtime.rendezvous is not None:
        host, _, port = _endpoint(runtime, spec.parent.name).rpartition(":")
        meet = ["--master_addr", host.strip("[]"), "--master_port", port]
    runner = [sys.executable, "-m", "deepspeed.launcher.runner", *where, *meet]
    if runtime.num_nodes == 1:
        return [*runner, "--module", *worker[1:]]
    runner += ["--hostfile", str(runtime.hostfile), "--num_nodes", str(runtime.num_nodes)]
    return [*runner, "--no_python", "--no_local_rank", *on_node(spec.parent), *worker]


def _endpoint(runtime: Runtime, launch_name: str) -> str:
    """Where the nodes meet: the same on all, another for each launch unless the profile fixes the port."""
    place = runtime.rendezvous or ""
    if re.search(r":\d+$", place):
        return place
    # Below the ports that Linux gives to outgoing connections (32768 and up).
    return f"{place}:{20000 + int(hashlib.sha256(launch_name.encode()).hexdigest(), 16) % 12000}"


def _free_port() -> int:
    """A port that nobody has now; deepspeed's own default is one for all launches of a host."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def worker_environment(runtime: Runtime, devices: Sequence[str] = ()) -> dict[str, str]:
    """The parent's environment with thread counts fixed and everything that would phone home switched off.

    For deepspeed without what its runner would write into a command line, which the log repeats.
    """
    environment = {**os.environ, WATCH_STDIN: "1", **_settings(runtime)}
    if devices:
        environment[VISIBLE] = ",".join(devices)
    if runtime.launcher == "deepspeed":
        environment = {name: value for name, value in environment.items() if not _EXPORTED_SECRETS.match(name)}
        # It also exports the lines of a file of this name in the home or the working folder: this is never a file.
        environment["DS_ENV_FILE"] = os.devnull
    return environment


def _settings(runtime: Runtime) -> dict[str, str]:
    """What every process of a launch sets, on whatever node."""
    threads = str(runtime.threads)
    return {
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
        **({VISIBLE: ""} if runtime.device == "cpu" else {}),
    }


class WorkerProcess:
    """A launched worker below its keeper, the leader of a process group, which is tied to this process."""

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        scratch: Path,
        heartbeat: Heartbeat | None = None,
        locks: Sequence[int] = (),
    ) -> None:
        """`heartbeat`, where processes of other nodes are tied to it, beats as long as this worker may. `locks` are
        descriptors of what it has to itself, which stay open until its keeper ends.
        """
        self._heartbeat = heartbeat
        self.log = log = scratch / "worker.log"
        self._scratch = scratch
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", KEEPER, str(scratch / STOP_FILE), *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                pass_fds=locks,
            )
        # Popen's own wait with a timeout looks 20 times a second: a tenth of all that micro's flow computed.
        self._ended = threading.Event()
        try:
            threading.Thread(target=self._await_end, name=f"end of {scratch.name}", daemon=True).start()
        except BaseException:
            # Nobody has it yet who would end it.
            self.kill()
            raise

    def _await_end(self) -> None:
        # Its number stays taken until the process is reaped, which who signals to it does.
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        self._ended.set()

    def wait(self, poll: Callable[[], None], poll_seconds: float = 0.2) -> int:
        """Calls `poll` until the worker has ended; returns its exit code (negative: killed by that signal)."""
        while not self._ended.wait(poll_seconds):
            poll()
        poll()
        return self._process.wait()

    def stop(self, grace_seconds: float) -> None:
        """Asks it to save a checkpoint and end (see Job.stop_requested); SIGKILL after the grace period.

        Its keeper grants that also where this process is killed meanwhile.
        """
        ask_to_stop(self._scratch / STOP_FILE, grace_seconds)
        self._ended.wait(min(grace_seconds, threading.TIMEOUT_MAX))
        self.kill()

    def kill(self) -> None:
        """Ends the group at once. Ranks in sessions of their own end when their standard input does, those on other
        nodes when the heartbeat does."""
        if self._heartbeat is not None:
            # A file system that is away keeps no process of this host alive.
            with suppress(OSError):
                self._heartbeat.stop()
        if self._process.poll() is None:
            self._signal(signal.SIGKILL)
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        # The keeper may go before the worker, which gives its memory back first.
        deadline = time.monotonic() + _KILL_SECONDS
        while group_is_alive(self._process.pid) and time.monotonic() < deadline:
            time.sleep(0.02)

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
        return said["code"], redact(said["message"])

    def log_tail(self) -> str:
        """The last lines the worker printed."""
        return redact("\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]))
