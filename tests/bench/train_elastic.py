"""A distillation in two processes, of which one is killed with -9 at random moments, against an undisturbed one, and
one that is stopped half way and goes on with another number of processes.

The seed is printed and stands in the rows' conditions; MEDIUS_KILL_SEED repeats it.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.manifest import MAIN_SHARD
from tasks.modeling.model_files import load_causal_lm
from tasks.training.record import LOG_NAME
from tasks.training.settings import TrainingRuntime
from tests.bench.distilling import SAID, STUDENT, distill_inputs
from tests.bench.elastic_launch import Kill, Launch, run_launch
from tests.bench.jobs import JobInputs
from tests.bench.records import Measured, Measurement
from tests.bench.training import apart

KILLS, KILLS_A_TRAINING = 10, 4
MAX_LAUNCHES = 3 * KILLS
NUM_TOKENS, MAX_TOKENS = 20_000, 192
STEPS, ROWS_PER_STEP, CHECKPOINT_EVERY = 40, 8, 4
RECIPE: dict[str, Any] = {
    "loss": {"forward_kl": 0.7, "ce": 0.3},
    "optimizer": {"learning_rate": 1e-3},
    "steps": STEPS,
    "rows_per_step": ROWS_PER_STEP,
    "precision": "float32",
    "log_every_steps": 1,
}
TRAINING_SAID = f"{STEPS} steps of {ROWS_PER_STEP} documents of up to {MAX_TOKENS} tokens, {SAID}, 64 entries, float32"


def _runtime(num_processes: int) -> TrainingRuntime:
    """Two processes with ZeRO-3, or one with ZeRO-1."""
    together = num_processes > 1
    return TrainingRuntime(
        launcher="torchrun" if together else "python",
        num_processes=num_processes,
        device="cpu",
        micro_batch_tokens=512,
        deepspeed_config=f"configs/deepspeed/zero{3 if together else 1}.json",
        checkpoint_every_steps=CHECKPOINT_EVERY,
    )


@dataclass
class Found:
    """What the launches have shown."""

    launches: int = 0
    kills: int = 0
    ranks: list[int] = field(default_factory=list)
    resumed: int = 0
    began_anew: int = 0
    trainings: int = 0
    changed: int = 0
    slowest_end: float = 0


def _kills(inputs: JobInputs, undisturbed: Launch, expected: dict[str, str]) -> Iterator[Measured]:
    seed = int(os.environ.get("MEDIUS_KILL_SEED") or random.SystemRandom().randrange(2**32))
    print(f"MEDIUS_KILL_SEED={seed}", flush=True)
    chance = random.Random(seed)
    found = Found()
    while found.kills < KILLS and found.launches < MAX_LAUNCHES:
        artifact = inputs.artifact(f"killed-{found.trainings}")
        kills = 0
        while not _finished(artifact):
            kill = None
            step = _newest_checkpoint(artifact)
            if kills < KILLS_A_TRAINING and found.kills < KILLS:
                # What is left to do, so that most moments fall into it.
                left = undisturbed.work_seconds * (1 - (step or 0) / STEPS)
                kill = Kill(rank=chance.randrange(2), after=chance.uniform(0, left))
            launch = run_launch(inputs, artifact, RECIPE, _runtime(2), kill=kill)
            found.launches += 1
            found.resumed += launch.resumed is not None
            found.began_anew += step is not None and launch.began_anew
            if kill and launch.killed:
                kills += 1
                found.kills += 1
                found.ranks.append(kill.rank)
                found.slowest_end = max(found.slowest_end, launch.seconds_to_end)
        found.trainings += 1
        found.changed += _objects(artifact) != expected
    said = (
        f"MEDIUS_KILL_SEED={seed}: {found.kills} kills ({found.ranks.count(0)} of rank 0) in {found.launches} launches "
        f"of {found.trainings} trainings in {_said(2)} under torchrun, each at a moment after its first event; "
        f"{found.resumed} launches went on from a checkpoint, one every {CHECKPOINT_EVERY} steps; all processes had "
        f"ended at most {found.slowest_end:.1f} s after a kill; {TRAINING_SAID}"
    )
    yield Measured("train.kills", found.kills, said, found.launches)
    yield Measured("train.kills_not_resumed", found.began_anew, said, found.launches)
    yield Measured(
        "train.kills_changed",
        found.changed,
        f"all {len(expected)} objects compared ({', '.join(expected)}); {said}",
        found.trainings,
    )


def _resume(inputs: JobInputs, undisturbed: Artifact, first: int, second: int) -> Iterator[Measured]:
    artifact = inputs.artifact(f"resumed-{first}-{second}")
    run_launch(inputs, artifact, RECIPE, _runtime(first), stop_after=STEPS // 2)
    launch = run_launch(inputs, artifact, RECIPE, _runtime(second))
    if launch.resumed is None:
        raise RuntimeError(f"{artifact.directory} began anew with {second} processes")
    losses, expected = _losses(artifact), _losses(undisturbed)
    after = range(launch.resumed + 1, STEPS + 1)
    said = f"stopped after step {launch.resumed} in {_said(first)} and gone on with in {_said(second)}"
    yield Measured(
        f"train.resume.{first}_to_{second}",
        max(abs(losses[step] / expected[step] - 1) for step in after),
        f"{said}; the losses of steps {after[0]} to {STEPS} against a training in {_said(2)} that nobody disturbed "
        f"(from {expected[1]:.3f} to {expected[STEPS]:.3f} nat); {TRAINING_SAID}",
        len(after),
    )
    start = dict(load_causal_lm(STUDENT, dtype=torch.float32).named_parameters())
    yield Measured(
        f"train.resume.{first}_to_{second}.weights",
        apart(_weights(artifact), _weights(undisturbed), start),
        f"{said}; against those of a training in {_said(2)} that nobody disturbed, over their way from the start; "
        f"{TRAINING_SAID}",
    )


def _said(num_processes: int) -> str:
    return "2 processes with ZeRO-3" if num_processes > 1 else "1 process with ZeRO-1"


def _elastic() -> Iterator[Measured]:
    with tempfile.TemporaryDirectory() as folder:
        inputs = distill_inputs(Path(folder), NUM_TOKENS, MAX_TOKENS)
        artifact = inputs.artifact("undisturbed")
        undisturbed = run_launch(inputs, artifact, RECIPE, _runtime(2))
        yield from _resume(inputs, artifact, 2, 1)
        yield from _resume(inputs, artifact, 1, 2)
        yield from _kills(inputs, undisturbed, _objects(artifact))


def _finished(artifact: Artifact) -> bool:
    return artifact.store.exists(artifact.path(f"shards/{MAIN_SHARD}.json"))


def _newest_checkpoint(artifact: Artifact) -> int | None:
    """Step of the newest one that is whole: its list of files is written last."""
    names = [Path(entry.path) for entry in artifact.store.list(artifact.path("checkpoints"))]
    steps = [int(name.stem.split("-")[1]) for name in names if name.parent.name == "checkpoints"]
    return max(steps, default=None)


def _objects(artifact: Artifact) -> dict[str, str]:
    """Checksum of each object of a finished artifact by its name."""
    return {entry.name: entry.sha256 for entry in artifact.covered_objects(artifact.receipts())}


def _losses(artifact: Artifact) -> dict[int, float]:
    """The logged loss of each step."""
    lines = [json.loads(line) for line in _bytes(artifact, LOG_NAME).splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def _weights(artifact: Artifact) -> dict[str, Tensor]:
    """A finished model's."""
    return load(_bytes(artifact, "model.safetensors"))


def _bytes(artifact: Artifact, name: str) -> bytes:
    entry = next(entry for entry in artifact.covered_objects(artifact.receipts()) if entry.name == name)
    return artifact.store.get(artifact.path(entry.path))


MEASUREMENTS = [Measurement("train_elastic", _elastic, ("train.kills", "train.kills_*", "train.resume.*"))]
