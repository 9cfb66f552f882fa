"""The command lines of a launch, what of an environment reaches other nodes, and the tie to them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.artifacts.errors import BadInputError
from tasks.runtime.declare import Runtime
from tasks.runtime.launch import launch, worker_command, worker_environment
from tasks.runtime.nodes import NODE_FILE, on_node, write_node_file
from tasks.worker.leash import HEARTBEAT, WATCH_STDIN, Heartbeat, wait_for_silence
from tests.runtime.conftest import ROOT, is_alive, wait_for

SPEC = Path("/scratch/label/0a1b2c3d/spec.json")
WORKER = ["-m", "tasks.sft.worker", "--spec", str(SPEC)]
NODE = [sys.executable, "-m", "tasks.worker.node", "/scratch/label/0a1b2c3d/node.json"]
SRUN = ("srun", "--nodes=2", "--ntasks-per-node=1")


def command(**runtime: object) -> list[str]:
    return worker_command("tasks.sft.worker", SPEC, Runtime.model_validate(runtime))


def test_one_node() -> None:
    assert command() == [sys.executable, *WORKER]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=0"]
    assert command(launcher="torchrun", num_processes=2) == [*torchrun, *WORKER]
    first, second = (command(launcher="deepspeed", num_processes=2) for _ in range(2))
    port = first.index("--master_port") + 1
    assert first[port] != second[port], "two launches on one host would meet at one port"
    runner = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", first[port]]
    assert first == [*runner, "--module", *WORKER[1:]]


def test_torchrun_on_several_nodes_is_begun_by_the_profile_s_command() -> None:
    nodes = {"launcher": "torchrun", "num_processes": 8, "num_nodes": 2, "node_command": SRUN}
    assert command(**nodes, rendezvous="node0:29400") == [
        *SRUN,
        *NODE,
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=node0:29400",
        "--rdzv-id=0a1b2c3d",
        "--nproc-per-node=8",
        "--max-restarts=0",
        *WORKER,
    ]

    def port(rendezvous: str, attempt: str) -> int:
        runtime = Runtime.model_validate({**nodes, "rendezvous": rendezvous})
        words = worker_command("m", Path("/scratch/label") / attempt / "spec.json", runtime)
        endpoint = next(word for word in words if word.startswith("--rdzv-endpoint="))
        host, _, number = endpoint.partition("=")[2].rpartition(":")
        assert host == rendezvous
        return int(number)

    drawn = {port(host, attempt) for host in ("node0", "[fd00::1]") for attempt in ("0a1b2c3d", "0a1b2c3e")}
    assert len(drawn) == 2
    assert all(20000 <= number < 32000 for number in drawn)


def test_deepspeed_on_several_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own runner takes the command apart again: that many nodes and processes, and a rank's command whole.

    It begins pdsh, here a script, with no variable that may be a secret in the command line.
    """
    hosts = tmp_path / "hosts"
    hosts.write_text("node0 slots=8\nnode1 slots=8\n")
    words = command(launcher="deepspeed", num_processes=8, num_nodes=2, hostfile=str(hosts))
    assert words[:3] == [sys.executable, "-m", "deepspeed.launcher.runner"]
    from deepspeed.launcher import runner

    parsed = runner.parse_args(words[3:])
    assert parsed.master_addr == "", "the runner asks the first host"
    for rendezvous, address in (("node0-ib", "node0-ib"), ("[fd00::1]:29400", "fd00::1")):
        told = command(launcher="deepspeed", num_processes=8, num_nodes=2, hostfile=str(hosts), rendezvous=rendezvous)
        meet = runner.parse_args(told[3:])
        assert meet.master_addr == address
        assert meet.master_port == 29400 or 20000 <= meet.master_port < 32000
    pool = runner.parse_inclusion_exclusion(runner.fetch_hostfile(parsed.hostfile), "", "")
    active = runner.apply_num_nodes_and_gpus(pool, parsed.num_nodes, parsed.num_gpus)
    assert {host: len(slots) for host, slots in active.items()} == {"node0": 8, "node1": 8}
    (tmp_path / "ssh").write_text("#!/bin/sh\necho 127.0.0.1\n")
    (tmp_path / "pdsh").write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {tmp_path}/began\n")
    for script in ("ssh", "pdsh"):
        (tmp_path / script).chmod(0o755)
    (tmp_path / ".deepspeed_env").write_text("TOKEN=planted-secret\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("MLFLOW_TRACKING_TOKEN", "MLFLOWX", "PYTHON_API_TOKEN", "PYTHONANYWHERE_TOKEN"):
        monkeypatch.setenv(name, "planted-secret")
    monkeypatch.setenv("UCX_TLS", "tcp")
    environment = worker_environment(Runtime(launcher="deepspeed"))
    for name in os.environ.keys() - environment.keys():
        monkeypatch.delenv(name)
    # It reads this one when it is imported.
    monkeypatch.setattr(runner, "DEEPSPEED_ENVIRONMENT_NAME", environment["DS_ENV_FILE"])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        runner.main(words[3:])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    began = (tmp_path / "began").read_text()
    assert "planted-secret" not in began
    assert "export UCX_TLS=tcp; " in began
    on_remote = began.splitlines()
    assert on_remote[-8:] == [*NODE, *WORKER]
    # A rank then is this command and nothing else: neither "python -m" before it nor "--local_rank=0" within it.
    assert {"--no_python", "--no_local_rank"} <= set(on_remote)
    assert "--module" not in on_remote
    gone = Runtime(launcher="deepspeed", num_nodes=2, hostfile=str(tmp_path / "none"))
    with pytest.raises(BadInputError, match="there is no such file"):
        launch("tasks.sft.worker", tmp_path / "spec.json", gone)


@pytest.mark.parametrize(
    ("runtime", "what"),
    [
        ({"num_processes": 2}, "num_processes is 2, but launcher python starts one process; set launcher to torchrun"),
        ({"num_nodes": 2}, "here launcher is python with neither"),
        ({"num_nodes": 2, "launcher": "torchrun", "rendezvous": "a:1"}, "here launcher is torchrun with rendezvous"),
        ({"num_nodes": 2, "launcher": "torchrun", "hostfile": "hosts"}, "torchrun with hostfile"),
        ({"num_nodes": 2, "launcher": "deepspeed", "rendezvous": "a", "node_command": SRUN}, "deepspeed with node_com"),
        ({"launcher": "deepspeed", "hostfile": "hosts"}, "hostfile is for several nodes"),
        ({"num_nodes": 2, "launcher": "torchrun", "rendezvous": "a b", "node_command": SRUN}, "pattern"),
    ],
)
def test_what_starts_not_all_processes_is_refused(runtime: dict[str, object], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        Runtime.model_validate(runtime)


def test_every_node_gets_the_environment_and_nobody_else_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", 'se"cret$(x) %h')
    monkeypatch.setenv("https_proxy", "http://proxy")
    monkeypatch.setenv("MASTER_ADDR", "elsewhere")
    write_node_file(tmp_path, {"OMP_NUM_THREADS": "3"})
    assert (tmp_path / NODE_FILE).stat().st_mode & 0o777 == 0o600
    told = "import json, os; print(json.dumps(dict(os.environ)))"
    bare = {"PATH": os.environ["PATH"], WATCH_STDIN: "1", "OMP_NUM_THREADS": "64"}
    said = subprocess.run([*on_node(tmp_path), "-c", told], env=bare, cwd=ROOT, capture_output=True, check=True).stdout
    found = json.loads(said)
    assert found["AWS_SECRET_ACCESS_KEY"] == 'se"cret$(x) %h'
    assert (found["https_proxy"], found["OMP_NUM_THREADS"], found[WATCH_STDIN]) == ("http://proxy", "3", "0")
    assert found[HEARTBEAT] == str(tmp_path / "heartbeat")
    assert "MASTER_ADDR" not in found
    (tmp_path / NODE_FILE).unlink()
    blind = subprocess.run([*on_node(tmp_path), "-c", ""], cwd=ROOT, capture_output=True, text=True, check=False)
    assert blind.returncode == 1
    assert "that all nodes mount" in blind.stderr


_HEAD = """
import sys, time
from pathlib import Path
from tasks.worker.leash import Heartbeat
Heartbeat(Path(sys.argv[1]), every_seconds=0.05)
print("beating", flush=True)
time.sleep(60)
"""
_RANK = """
import sys, time
from pathlib import Path
from tasks.worker.leash import watch_heartbeat
watch_heartbeat(Path(sys.argv[1]), silence_seconds=0.5, look_seconds=0.05)
print("watching", flush=True)
time.sleep(60)
"""


def test_a_rank_that_no_signal_reaches_ends_after_its_head(tmp_path: Path) -> None:
    beat = tmp_path / "heartbeat"

    def start(code: str, *arguments: str) -> subprocess.Popen[bytes]:
        # Sessions of their own, no pipe between them: as on two nodes, a file is all that they share.
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=ROOT,
            env={**os.environ, HEARTBEAT: str(beat)},
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None
        process.stdout.readline()
        return process

    head = start(_HEAD, str(beat))
    ranks = [start(_RANK, str(tmp_path / "stop")) for _ in range(2)]
    time.sleep(1.2)
    assert all(is_alive(rank.pid) for rank in ranks), "a beat is seen"
    head.kill()
    head.wait()
    for rank in ranks:
        assert rank.wait(timeout=5) == -9
    # A launch that ends its heartbeat itself takes the file away, which needs no silence.
    own = Heartbeat(beat, every_seconds=60)
    last = start(_RANK.replace("0.5", "60"), str(tmp_path / "stop"))
    time.sleep(0.2)
    assert is_alive(last.pid)
    own.stop()
    wait_for(lambda: last.poll() is not None, 5, "the rank ends")


class SharedFile:
    """A heartbeat's file as a rank sees it, in a time of its own."""

    def __init__(self, last_beat: float, away: tuple[float, float] = (0, 0), *, hard: bool = True) -> None:
        self.now = 0.0
        self._last_beat = last_beat
        self._away = away
        self._hard = hard

    def look(self) -> int | None:
        """Beats come every 5 s until the last. While its server is away a hard mount blocks, a soft one fails in 30 s.

        What the runtime wrote meanwhile arrives 4 s after the server is back.
        """
        start, end = self._away
        if start <= self.now < end:
            if not self._hard:
                self.now += 30
                return 0
            self.now = end
        seen = start if start < self.now < end + 4 else self.now
        return 1 + int(min(seen, self._last_beat) // 5)

    def ended_after(self) -> float:
        def sleep(seconds: float) -> None:
            self.now += seconds

        wait_for_silence(self.look, 50, 2, lambda: self.now, sleep)
        return self.now


def test_a_file_system_that_blocks_is_no_silence() -> None:
    assert 1050 < SharedFile(1000).ended_after() <= 1055
    assert 1050 < SharedFile(1000, away=(101, 400)).ended_after() <= 1055, "the beat from before is seen at 400"
    # The runtime went while nobody could see it: that is known soon after the server is back.
    assert 440 < SharedFile(200, away=(101, 400)).ended_after() <= 460
    assert 150 < SharedFile(1000, away=(101, 400), hard=False).ended_after() <= 170, "it cannot be told from an end"
