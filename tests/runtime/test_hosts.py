"""A training over two hosts that have nothing in common but their file system is the training of one process.

The hosts are network namespaces with names and addresses of their own. Torchrun is started on both by a script, as srun
does it, and its ranks meet at an address of the network; deepspeed's runner goes through pdsh and OpenSSH.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.manifest import MAIN_SHARD
from tasks.artifacts.store import Store
from tasks.training.settings import TrainingRuntime
from tasks.worker.spec import WorkerSpec
from tests.hosts import Host, Hosts, two_hosts
from tests.runtime.conftest import wait_for
from tests.runtime.node_training import (
    RECIPE,
    RUNTIME,
    require_same_losses,
    require_same_weights,
    training_inputs,
    write_spec,
)

Launcher = Callable[[Hosts, Path], dict[str, object]]
SSH = Path(__file__).parents[2] / "infra" / "ssh"


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    with two_hosts(tmp_path) as both:
        yield both


def torchrun(hosts: Hosts, folder: Path) -> dict[str, object]:
    there, here = (shlex.join(hosts[name].command()) for name in ("b", "a"))
    script = folder / "on-both"
    script.write_text(f'#!/bin/sh\n{there} "$@" &\n{here} "$@" && wait $!\n')
    script.chmod(0o755)
    return {"launcher": "torchrun", "rendezvous": "a", "node_command": [str(script)]}


def deepspeed(hosts: Hosts, folder: Path) -> dict[str, object]:
    # By name, where test_nodes.py leaves it to what the first host says of itself.
    return {"launcher": "deepspeed", "rendezvous": "a", "hostfile": str(reachable_by_ssh(hosts, folder))}


def reachable_by_ssh(hosts: Hosts, folder: Path) -> Path:
    """Starts OpenSSH's server on both hosts, as infra/ssh configures it; returns a hostfile."""
    for program, package in {"sshd": "openssh-server", "pdsh": "pdsh"}.items():
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program}: apt-get install {package}")
    for key in ("key", "host-key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    (folder / "known_hosts").write_text(f"medius-nodes {(folder / 'host-key.pub').read_text()}")
    for name in ("sshd_config", "ssh_config"):
        (folder / name).write_text((SSH / name).read_text().replace("/etc/medius/ssh", str(folder)))
    for name in ("a", "b"):
        _start_ssh(hosts[name], folder)
    for name in ("a", "b"):
        wait_for(lambda name=name: _answers(hosts["a"], name), 60, f"ssh to {name}")
    hostfile = folder / "hostfile"
    hostfile.write_text("# two of them\na slots=1\nb slots=1\n")
    return hostfile


def _start_ssh(host: Host, folder: Path) -> None:
    # In the host's own view of the file system: this machine need have neither the folder nor the keys.
    host.run("mount", "-t", "tmpfs", "tmpfs", "/run")
    host.run("mkdir", "/run/sshd")
    host.run("mount", "--bind", str(folder / "ssh_config"), "/etc/ssh/ssh_config")
    host.run(str(shutil.which("sshd")), "-f", str(folder / "sshd_config"), "-E", str(folder / f"sshd-{host.name}.log"))


def _answers(host: Host, name: str) -> bool:
    done = subprocess.run(host.command("ssh", name, "hostname"), capture_output=True, text=True)
    return done.stdout.strip() == name


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [torchrun, deepspeed])
def test_two_hosts_train_what_one_process_does(
    launcher: Launcher,
    hosts: Hosts,
    tmp_path: Path,
    store: Store,
    artifact_of: Callable[..., Artifact],
    run_stage: Callable[..., Artifact],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = training_inputs(tmp_path, artifact_of)
    runtime = TrainingRuntime.model_validate({**RUNTIME, "num_nodes": 2, **launcher(hosts, tmp_path)})
    spec = write_spec(tmp_path, store, inputs, runtime)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    command = [sys.executable, "-m", "tests.runtime.node_training", str(spec)]
    process = hosts["a"].popen(command, tmp_path / "launch.log", {"NCCL_DEBUG": "WARN"})
    try:
        one = run_stage("sft", RECIPE, inputs, RUNTIME)
        code = process.wait(500)
    finally:
        process.kill()
        process.wait()
    log = spec.with_name("worker.log").read_text()
    assert code == 0, log[-4000:] + (tmp_path / "launch.log").read_text()
    require_same_losses(store, spec, one)
    require_same_weights(store, spec, one, tmp_path)


@pytest.mark.slow
def test_a_training_whose_second_host_is_cut_off_is_to_be_tried_again_and_goes_on_when_the_host_is_back(
    hosts: Hosts,
    tmp_path: Path,
    store: Store,
    artifact_of: Callable[..., Artifact],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("a", "b"):
        # Linux gives an unanswered connection up after a quarter of an hour; here after seconds.
        hosts[name].run("sh", "-c", "echo 3 > /proc/sys/net/ipv4/tcp_retries2")
    settings = {**RUNTIME, "num_nodes": 2, "checkpoint_every_steps": 1, **torchrun(hosts, tmp_path)}
    inputs, runtime = training_inputs(tmp_path, artifact_of), TrainingRuntime.model_validate(settings)
    recipe = {**RECIPE, "steps": 60}

    def start(attempt: str) -> tuple[subprocess.Popen[bytes], Path]:
        spec = write_spec(tmp_path, store, inputs, runtime, recipe, attempt)
        command = [sys.executable, "-m", "tests.runtime.node_training", str(spec)]
        return hosts["a"].popen(command, tmp_path / f"{attempt}.log"), spec

    process, spec = start("0a1b2c3d")
    artifact = Artifact(store, WorkerSpec.model_validate_json(spec.read_text()).directory)

    def last_step() -> int:
        names = [Path(entry.path).name for entry in store.list(artifact.path("checkpoints"))]
        return max((int(name.split("-")[1]) for name in names if re.fullmatch(r"step-.*\.json", name)), default=0)

    def log() -> str:
        return (spec.with_name("worker.log")).read_text()[-4000:] + (tmp_path / f"{spec.parent.name}.log").read_text()

    try:
        wait_for(lambda: last_step() or process.poll() is not None, 300, "a checkpoint")
        hosts.cut_off("b")
        assert process.wait(300) == 1, log()
        said = (tmp_path / "0a1b2c3d.log").read_text()
        assert "WorkerInterruptedError: sft: it lost one of its processes or a connection" in said
        assert "A retry goes on from the last checkpoint" in said
        reached = last_step()
        assert 0 < reached < recipe["steps"]
        # The cut-off host's ranks end by themselves: the run's heartbeat is gone.
        wait_for(lambda: not hosts["b"].processes(), 60, "the end of what ran on the cut-off host")

        hosts.reconnect("b")
        process, spec = start("4e5f6a7b")
        assert process.wait(500) == 0, log()
        assert f"goes on after step {reached} of" in log()
        assert artifact.receipts()[MAIN_SHARD].metrics["world_size"] == 2
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_command_runs_once_on_every_host_of_a_hostfile(hosts: Hosts, tmp_path: Path) -> None:
    hostfile = reachable_by_ssh(hosts, tmp_path)

    def on_hosts(*words: str) -> subprocess.CompletedProcess[str]:
        command = hosts["a"].command(str(SSH / "on-hosts.sh"), str(hostfile), *words)
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    done = on_hosts("sh", "-c", 'echo "$(hostname) $PWD $0"', "it's $HOME")
    assert sorted(done.stdout.splitlines()) == [f"{name} {Path.cwd()} it's $HOME" for name in ("a", "b")], done.stderr
    assert on_hosts("sh", "-c", 'test "$(hostname)" = a || exit 7').returncode == 7
    hostfile.write_text("# nobody\n")
    assert "names no host" in on_hosts("true").stderr
