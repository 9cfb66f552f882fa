"""A training that takes seconds, to be launched over several nodes and compared with the same in one process.

`python -m tests.runtime.node_training SPEC` launches it, where a test wants the launch to come from another host.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import MediusError
from tasks.artifacts.manifest import MAIN_SHARD, InputRecord
from tasks.artifacts.store import Store, open_store
from tasks.runtime.launch import launch
from tasks.runtime.worker_end import raise_for_end
from tasks.training.record import LOG_NAME
from tasks.training.settings import TrainingRuntime
from tasks.worker.spec import WorkerSpec
from tests.training.parts import corpus_directory, make_model, make_rows, model_directory

RECIPE = {"optimizer": {"learning_rate": 0.01}, "steps": 6, "rows_per_step": 8, "precision": "float32",
          "log_every_steps": 1}  # fmt: skip
RUNTIME = {"device": "cpu", "micro_batch_tokens": 32, "deepspeed_config": "configs/deepspeed/zero3.json"}


def training_inputs(tmp_path: Path, artifact_of: Callable[..., Artifact]) -> dict[str, Artifact]:
    """A model and a corpus as finished artifacts."""
    return {
        "model": artifact_of(model_directory(tmp_path / "model", make_model())),
        "corpus": artifact_of(corpus_directory(tmp_path / "corpus", make_rows())),
    }


def write_spec(
    tmp_path: Path,
    store: Store,
    inputs: dict[str, Artifact],
    runtime: TrainingRuntime,
    recipe: Mapping[str, Any] = RECIPE,
    attempt: str = "0a1b2c3d",
) -> Path:
    """The file of a launch in a scratch folder of its own, as the runtime writes it."""
    records = {}
    for role, artifact in inputs.items():
        manifest = artifact.manifest()
        assert manifest is not None
        records[role] = InputRecord(key=manifest.key, digest=manifest.digest, directory=artifact.directory)
    scratch = tmp_path / "scratch" / attempt
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
        recipe=dict(recipe),
        runtime=runtime.model_dump(mode="json"),
        inputs=records,
    )
    file = scratch / "spec.json"
    file.write_text(spec.model_dump_json())
    return file


def require_same_weights(store: Store, spec: Path, one: Artifact, tmp_path: Path) -> None:
    """Two processes under ZeRO-3 must have trained what one did."""
    two = Artifact(store, WorkerSpec.model_validate_json(spec.read_text()).directory)
    expected = _weights(one, tmp_path / "one.safetensors")
    for name, weight in _weights(two, tmp_path / "two.safetensors").items():
        if name.endswith("k_proj.bias"):
            # A softmax over keys does not see it: its gradient is rounding alone, which Adam scales up to full steps.
            continue
        assert (weight - expected[name]).norm() <= 1e-5 * expected[name].norm() + 1e-6, name
    metrics = two.receipts()[MAIN_SHARD].metrics
    assert (metrics["world_size"], metrics["zero_stage"]) == (2, 3)


def require_same_losses(store: Store, spec: Path, one: Artifact) -> None:
    """At every step, and on the held-out split before and after, two processes must have seen the losses of one."""
    two = Artifact(store, WorkerSpec.model_validate_json(spec.read_text()).directory)
    expected, found = _log(one), _log(two)
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    assert {"loss", "heldout_ce"} <= {name for line in expected for name in line}
    for line, other in zip(found, expected, strict=True):
        # Float32 sums of another order; the gradient's norm takes the last bits of all of them.
        assert line == pytest.approx(other, rel=1e-5), line["step"]


def _log(artifact: Artifact) -> list[dict[str, float]]:
    lines = artifact.store.get(_path(artifact, LOG_NAME)).decode().splitlines()
    return [json.loads(line) for line in lines]


def _path(artifact: Artifact, name: str) -> str:
    found = next(entry for entry in artifact.receipts()[MAIN_SHARD].objects if entry.name == name)
    return artifact.path(found.path)


def _weights(artifact: Artifact, target: Path) -> dict[str, torch.Tensor]:
    artifact.store.download(_path(artifact, "model.safetensors"), target)
    return load_file(target)


def main() -> None:
    """Launches the training of a spec and waits for it; prints what its end means where that is not a model."""
    file = Path(sys.argv[1])
    spec = WorkerSpec.model_validate_json(file.read_text())
    process = launch("tasks.sft.worker", file, TrainingRuntime.model_validate(spec.runtime))
    try:
        code = process.wait(lambda: None)
        raise_for_end(spec.label, Artifact(open_store(spec.store), spec.directory), process, code)
    except MediusError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        sys.exit(error.exit_code)
    finally:
        process.kill()


if __name__ == "__main__":
    main()
