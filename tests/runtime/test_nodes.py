"""A training over two nodes, both on this host, is the training of one process.

What begins processes on another node is stood in for: `node_command` by a script that runs its arguments twice, pdsh
and ssh by scripts that run theirs here with no environment but PATH.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.store import Store
from tasks.runtime.launch import launch
from tasks.training.settings import TrainingRuntime
from tests.runtime.node_training import RECIPE, RUNTIME, require_same_weights, training_inputs, write_spec

TWICE = """#!/bin/sh
"$@" &
"$@" && wait $!
"""
SSH = """#!/bin/sh
case "$*" in *-I*) echo 127.0.0.1 ;; *) echo node0 ;; esac
"""
PDSH = """#!/bin/sh
shift 5  # -S -f NUMBER -w HOSTS
here() { env -i PATH="$PATH" sh -c "$(echo "$2" | sed "s/%n/$1/g")"; }
here 0 "$*" &
here 1 "$*" && wait $!
"""


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def torchrun(tmp_path: Path) -> dict[str, object]:
    twice = script(tmp_path / "bin" / "twice", TWICE)
    return {"launcher": "torchrun", "rendezvous": "localhost", "node_command": [str(twice)]}


def deepspeed(tmp_path: Path) -> dict[str, object]:
    script(tmp_path / "bin" / "ssh", SSH)
    script(tmp_path / "bin" / "pdsh", PDSH)
    hosts = tmp_path / "hosts"
    hosts.write_text("node0 slots=1\nnode1 slots=1\n")
    return {"launcher": "deepspeed", "hostfile": str(hosts)}


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [torchrun, deepspeed])
def test_two_nodes_train_what_one_process_does(
    nodes: Callable[[Path], dict[str, object]],
    tmp_path: Path,
    store: Store,
    artifact_of: Callable[..., Artifact],
    run_stage: Callable[..., Artifact],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = training_inputs(tmp_path, artifact_of)
    runtime = TrainingRuntime.model_validate({**RUNTIME, "num_nodes": 2, **nodes(tmp_path)})
    spec = write_spec(tmp_path, store, inputs, runtime)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "told-to-nobody")
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    process = launch("tasks.sft.worker", spec, runtime)
    one = run_stage("sft", RECIPE, inputs, RUNTIME)
    try:
        assert process.wait(lambda: None) == 0, process.log_tail()
    finally:
        process.kill()
    require_same_weights(store, spec, one, tmp_path)
    assert not spec.with_name("heartbeat").exists()
    assert "told-to-nobody" not in process.log.read_text()
