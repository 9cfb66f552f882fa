"""A training that takes seconds, to be launched over several nodes and compared with the same in one process.

`python -m tests.runtime.node_training SPEC` launches it, where a test wants the launch to come from another host.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

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


def training_inputs(tmp_path: Path, artifact_of: Callable[..., Artifact]) -> dict[str, Artifact]:
    """A model and a corpus as finished artifacts."""
    return {
        "model": artifact_of(model_directory(tmp_path / "model", make_model())),
        "corpus": artifact_of(corpus_directory(tmp_path / "corpus", make_rows())),
    }


def write_spec(tmp_path: Path, store: Store, inputs: dict[str, Artifact], runtime: TrainingRuntime) -> Path:
    """The file of a launch in a scratch folder of its own, as the runtime writes it."""
    records = {}
    for role, artifact in inputs.items():
        manifest = artifact.manifest()
        assert manifest is not None
        records[role] = InputRecord(key=manifest.key, digest=manifest.digest, directory=artifact.directory)
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


def _weights(artifact: Artifact, target: Path) -> dict[str, torch.Tensor]:
    found = next(entry for entry in artifact.receipts()[MAIN_SHARD].objects if entry.name == "model.safetensors")
    artifact.store.download(artifact.path(found.path), target)
    return load_file(target)


def main() -> None:
    """Launches the training of a spec and waits for it."""
    file = Path(sys.argv[1])
    runtime = TrainingRuntime.model_validate(WorkerSpec.model_validate_json(file.read_text()).runtime)
    process = launch("tasks.sft.worker", file, runtime)
    try:
        code = process.wait(lambda: None)
    finally:
        process.kill()
    sys.exit(code)


if __name__ == "__main__":
    main()
