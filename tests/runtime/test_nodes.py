"""A training over two nodes, both on this host, is the training of one process.

What begins processes on another node is stood in for: `node_command` by a script that runs its arguments twice, pdsh
and ssh by scripts that run theirs here with no environment but PATH.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.manifest import MAIN_SHARD, InputRecord
from tasks.artifacts.store import Store
from tasks.runtime.launch import launch
from tasks.training.settings import TrainingRuntime
from tasks.worker.spec import WorkerSpec
from tests.training.parts import corpus_directory, make_model, make_rows, model_directory

RECIPE = {"optimizer": {"learning_rate": 0.01}, "steps": 6, "rows_per_step": 8, "precision": "float32"}
RUNTIME = {"device": "cpu", "micro_batch_tokens": 32, "deepspeed_config": "configs/deepspeed/zero3.json"}
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


def weights(artifact: Artifact, target: Path) -> dict[str, torch.Tensor]:
    found = next(entry for entry in artifact.receipts()[MAIN_SHARD].objects if entry.name == "model.safetensors")
    artifact.store.download(artifact.path(found.path), target)
    return load_file(target)


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
    inputs = {
        "model": artifact_of(model_directory(tmp_path / "model", make_model())),
        "corpus": artifact_of(corpus_directory(tmp_path / "corpus", make_rows())),
    }
    records = {}
    for role, artifact in inputs.items():
        manifest = artifact.manifest()
        assert manifest is not None
        records[role] = InputRecord(key=manifest.key, digest=manifest.digest, directory=artifact.directory)
    runtime = TrainingRuntime.model_validate({**RUNTIME, "num_nodes": 2, **nodes(tmp_path)})
    scratch = tmp_path / "scratch" / "0a1b2c3d"
    scratch.mkdir(parents=True)
    spec = WorkerSpec(
        stage="sft",
        label="sft",
        key="0" * 64,
        attempt=scratch.name,
        store=store.uri,
        directory="artifacts/sft/two",
        scratch=str(scratch),
        input_cache=str(tmp_path / "inputs"),
        recipe=RECIPE,
        runtime=runtime.model_dump(mode="json"),
        inputs=records,
    )
    (scratch / "spec.json").write_text(spec.model_dump_json())
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "told-to-nobody")
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    process = launch("tasks.sft.worker", scratch / "spec.json", runtime)
    one = run_stage("sft", RECIPE, inputs, RUNTIME)
    try:
        assert process.wait(lambda: None) == 0, process.log_tail()
    finally:
        process.kill()
    two = Artifact(store, spec.directory)
    expected = weights(one, tmp_path / "one.safetensors")
    for name, weight in weights(two, tmp_path / "two.safetensors").items():
        if name.endswith("k_proj.bias"):
            # A softmax over keys does not see it: its gradient is rounding alone, which Adam scales up to full steps.
            continue
        assert (weight - expected[name]).norm() <= 1e-5 * expected[name].norm() + 1e-6, name
    metrics = two.receipts()[MAIN_SHARD].metrics
    assert (metrics["world_size"], metrics["zero_stage"]) == (2, 3)
    assert not (scratch / "heartbeat").exists()
    assert "told-to-nobody" not in process.log.read_text()
