"""The command lines of a launch, what of an environment reaches other nodes, and the tie to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.artifacts.errors import BadInputError
from tasks.runtime.declare import Runtime
from tasks.runtime.launch import launch, worker_command
from tasks.runtime.nodes import NODE_FILE, on_node, write_node_file
from tasks.worker.leash import HEARTBEAT, WATCH_STDIN, Heartbeat
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


def test_deepspeed_on_several_nodes(tmp_path: Path) -> None:
    """Its own parser takes the command apart again: that many nodes and processes, and a rank's command whole."""
    hosts = tmp_path / "hosts"
    hosts.write_text("node0 slots=8\nnode1 slots=8\n")
    words = command(launcher="deepspeed", num_processes=8, num_nodes=2, hostfile=str(hosts))
    assert words[:3] == [sys.executable, "-m", "deepspeed.launcher.runner"]
    from deepspeed.launcher import runner

    parsed = runner.parse_args(words[3:])
    pool = runner.parse_inclusion_exclusion(runner.fetch_hostfile(parsed.hostfile), "", "")
    active = runner.apply_num_nodes_and_gpus(pool, parsed.num_nodes, parsed.num_gpus)
    assert {host: len(slots) for host, slots in active.items()} == {"node0": 8, "node1": 8}
    on_remote, _, _ = runner.PDSHRunner(parsed, "world").get_cmd({}, active)
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
        ({"num_nodes": 2}, "here launcher is python with neither"),
        ({"num_nodes": 2, "launcher": "torchrun", "rendezvous": "a:1"}, "here launcher is torchrun with rendezvous"),
        ({"num_nodes": 2, "launcher": "torchrun", "hostfile": "hosts"}, "torchrun with hostfile"),
        ({"num_nodes": 2, "launcher": "deepspeed", "rendezvous": "a", "node_command": SRUN}, "deepspeed with node_com"),
        ({"launcher": "deepspeed", "hostfile": "hosts"}, "hostfile is for several nodes"),
        ({"num_nodes": 2, "launcher": "torchrun", "rendezvous": "a b", "node_command": SRUN}, "pattern"),
    ],
)
def test_what_starts_no_second_node_is_refused(runtime: dict[str, object], what: str) -> None:
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
import time
from tasks.worker.leash import watch_heartbeat
watch_heartbeat(silence_seconds=0.5, look_seconds=0.05)
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
    ranks = [start(_RANK) for _ in range(2)]
    time.sleep(1.2)
    assert all(is_alive(rank.pid) for rank in ranks), "a beat is seen"
    head.kill()
    head.wait()
    for rank in ranks:
        assert rank.wait(timeout=5) == -9
    # A launch that ends its heartbeat itself takes the file away, which needs no silence.
    own = Heartbeat(beat, every_seconds=60)
    last = start(_RANK.replace("0.5", "60"))
    time.sleep(0.2)
    assert is_alive(last.pid)
    own.stop()
    wait_for(lambda: last.poll() is not None, 5, "the rank ends")
