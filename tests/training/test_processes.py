"""Two real processes under torchrun: they go on with what one began and end as it would have, and the reverse."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.manifest import MAIN_SHARD, InputRecord
from tasks.artifacts.store import Store
from tasks.distill.worker import run as run_distill
from tasks.sft.worker import run as run_sft
from tasks.worker.job import Job, PreemptedError
from tasks.worker.spec import WorkerSpec
from tests.training.parts import corpus_directory, logit_store, make_model, make_rows, model_directory

ROOT = Path(__file__).parents[2]
RECIPE = {"optimizer": {"learning_rate": 0.01}, "steps": 6, "rows_per_step": 8, "precision": "float32"}
RUNTIME = {"device": "cpu", "micro_batch_tokens": 20, "deepspeed_config": "configs/deepspeed/zero3.json"}
TWO = {"num_processes": 2, "launcher": "torchrun"}


def make_spec(
    tmp_path: Path,
    store: Store,
    stage: str,
    inputs: dict[str, Artifact],
    name: str,
    recipe: dict[str, object],
    **runtime: object,
) -> WorkerSpec:
    """A launch; `name` makes the artifact's folder."""
    records = {}
    for role, artifact in inputs.items():
        manifest = artifact.manifest()
        assert manifest is not None
        records[role] = InputRecord(key=manifest.key, digest=manifest.digest, directory=artifact.directory)
    attempt = os.urandom(4).hex()
    return WorkerSpec(
        stage=stage,
        label=stage,
        key="0" * 64,
        attempt=attempt,
        store=store.uri,
        directory=f"artifacts/{stage}/{name}",
        scratch=str(tmp_path / "scratch" / attempt),
        input_cache=str(tmp_path / "inputs"),
        recipe=recipe,
        runtime={**RUNTIME, **runtime},
        inputs=records,
    )


def start(store: Store, spec: WorkerSpec) -> tuple[Artifact, subprocess.Popen[bytes]]:
    """Launches a worker in two processes."""
    scratch = Path(spec.scratch)
    scratch.mkdir(parents=True)
    (scratch / "spec.json").write_text(spec.model_dump_json())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    with (scratch / "log").open("wb") as log:
        process = subprocess.Popen(
            [*launcher, f"tasks.{spec.stage}.worker", "--spec", str(scratch / "spec.json")],
            cwd=ROOT,
            env={**_without_ranks(), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Artifact(store, spec.directory), process


def _without_ranks() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}


def finish(tmp_path: Path, process: subprocess.Popen[bytes]) -> str:
    """Waits for a launch to succeed; what it said."""
    code = process.wait(timeout=120)
    log = max((tmp_path / "scratch").glob("*/log"), key=lambda path: path.stat().st_mtime).read_text()
    assert code == 0, log
    return log


def weights_of(artifact: Artifact, tmp_path: Path) -> dict[str, torch.Tensor]:
    found = next(entry for entry in artifact.receipts()[MAIN_SHARD].objects if entry.name == "model.safetensors")
    target = tmp_path / f"{artifact.directory.replace('/', '-')}.safetensors"
    artifact.store.download(artifact.path(found.path), target)
    return load_file(target)


@pytest.fixture
def inputs(tmp_path: Path, artifact_of: Callable[..., Artifact]) -> dict[str, Artifact]:
    return {
        "model": artifact_of(model_directory(tmp_path / "model", make_model())),
        "corpus": artifact_of(corpus_directory(tmp_path / "corpus", make_rows())),
    }


def start_alone(monkeypatch: pytest.MonkeyPatch, run: Callable[[Job], None], spec: WorkerSpec) -> Artifact:
    """Runs a worker in this process until its first checkpoint is in the store, and has it stop there."""
    job = Job(spec)
    folder = Path(spec.store.removeprefix("file://")) / spec.directory / "checkpoints"
    monkeypatch.setattr(Job, "stop_requested", property(lambda _: any(folder.glob("step-*.json"))))
    with pytest.raises(PreemptedError):
        run(job)
    monkeypatch.undo()
    assert MAIN_SHARD not in job.artifact.receipts()
    return job.artifact


def assert_alike(found: Artifact, expected: Artifact, tmp_path: Path) -> None:
    weights = weights_of(expected, tmp_path)
    for name, weight in weights_of(found, tmp_path).items():
        # A softmax over keys does not see their bias: its gradient is rounding, which Adam scales up to full steps.
        if not name.endswith("k_proj.bias"):
            assert (weight - weights[name]).norm() <= 1e-5 * weights[name].norm() + 1e-6, name


def test_two_processes_end_as_one_would_what_one_began(
    tmp_path: Path,
    store: Store,
    inputs: dict[str, Artifact],
    artifact_of: Callable[..., Artifact],
    run_stage: Callable[..., Artifact],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From one process with ZeRO-1 to two with ZeRO-3.

    Three held-out documents one by one, so that a process has nothing left to judge while the other has.
    """
    logits = logit_store(tmp_path / "logits", artifact_of, make_model(seed=1, initializer_range=0.5), make_rows())
    inputs = {"student": inputs["model"], "logits": logits}
    recipe = {**RECIPE, "loss": {"forward_kl": 0.9, "ce": 0.1}}
    alone = {"deepspeed_config": "configs/deepspeed/zero1.json"}
    spec = make_spec(tmp_path, store, "distill", inputs, "two", recipe, checkpoint_every_steps=2, **alone)
    start_alone(monkeypatch, run_distill, spec)
    two, process = start(store, make_spec(tmp_path, store, "distill", inputs, "two", recipe, **TWO))
    one = run_stage("distill", recipe, inputs, {**RUNTIME, **alone})
    log = finish(tmp_path, process)
    assert "converts the checkpoint after step" in log
    assert_alike(two, one, tmp_path)
    metrics_of_one, metrics_of_two = (artifact.receipts()[MAIN_SHARD].metrics for artifact in (one, two))
    assert (metrics_of_two["world_size"], metrics_of_two["zero_stage"]) == (2, 3)
    for name in ("heldout_kl_start", "heldout_kl", "heldout_ce_start", "heldout_ce", "train_loss", "tokens"):
        assert metrics_of_two[name] == pytest.approx(metrics_of_one[name], rel=1e-5)


@pytest.mark.slow
def test_two_processes_stop_and_two_or_one_go_on(
    tmp_path: Path, store: Store, inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two: not a bit is changed. One, with ZeRO-2: within rounding, in float32."""
    recipe = {**RECIPE, "steps": 24}
    undisturbed, process = start(store, make_spec(tmp_path, store, "sft", inputs, "undisturbed", recipe, **TWO))
    finish(tmp_path, process)
    for name in ("by-two", "by-one"):
        spec = make_spec(tmp_path, store, "sft", inputs, name, recipe, checkpoint_every_steps=2, **TWO)
        stopped, process = start(store, spec)
        deadline = time.monotonic() + 60
        while not list((Path(store.uri.removeprefix("file://")) / stopped.directory).glob("checkpoints/step-*.json")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(timeout=60) != 0
        assert MAIN_SHARD not in stopped.receipts()
    by_two, process = start(store, make_spec(tmp_path, store, "sft", inputs, "by-two", recipe, **TWO))
    finish(tmp_path, process)
    expected = weights_of(undisturbed, tmp_path)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights_of(by_two, tmp_path).items())
    two = {"deepspeed_config": "configs/deepspeed/zero2.json"}
    run_sft(Job(make_spec(tmp_path, store, "sft", inputs, "by-one", recipe, **two)))
    assert_alike(Artifact(store, "artifacts/sft/by-one"), undisturbed, tmp_path)


def start_slow(store: Store, spec: WorkerSpec, fault: str) -> list[subprocess.Popen[str]]:
    """Both processes of `slow_main`, without a launcher that would end the one when the other dies."""
    scratch = Path(spec.scratch)
    scratch.mkdir(parents=True)
    (scratch / "spec.json").write_text(spec.model_dump_json())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.slow_main", str(scratch / "spec.json"), fault],
            cwd=ROOT,
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]


@pytest.mark.slow
def test_work_of_any_length_is_waited_for(tmp_path: Path, store: Store, inputs: dict[str, Artifact]) -> None:
    """A download, a look for checkpoints and an upload, each of 6 seconds where a collective may take 4."""
    spec = make_spec(tmp_path, store, "sft", {"model": inputs["model"]}, "slow", {})
    processes = start_slow(store, spec, "slow")
    said = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    manifest = inputs["model"].manifest()
    assert manifest is not None
    printed = [str(sorted(entry.name for entry in manifest.objects)), "None", "1"]
    assert [[line for line in text.splitlines() if line in printed] for text in said] == [printed] * 2


@pytest.mark.slow
def test_a_frozen_process_at_work_is_noticed(tmp_path: Path, store: Store, inputs: dict[str, Artifact]) -> None:
    """Its connections stand; after 4 seconds without a word the other ends, long before a collective would."""
    spec = make_spec(tmp_path, store, "sft", {"model": inputs["model"]}, "frozen", {})
    main, other = start_slow(store, spec, "frozen")
    try:
        said = other.communicate(timeout=600)[0]
    finally:
        main.kill()
        other.kill()
    assert other.returncode
    assert "Timed out waiting 4000ms" in said
