"""The KD losses of torchtune and TRL beside ours, in an environment of their own on top of the checkout's:

build/bench/venv-kd/bin/python -m tests.bench.kd_packages PACKAGE

prints JSON: theirs over ours, timed in turns after both gave the same gradient.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.training.losses import LossWeights, Targets
from tests.bench.heads import CE_AND_KL, HeadInputs, V
from tests.bench.paths import BENCH, ROOT
from tests.bench.timing import paired
from tests.training.dense import relative

PACKAGES = {"torchtune": "torchtune==0.6.1", "trl": "trl==1.16.0"}
NEEDED = (
    "torchao==0.10.0",
    "torchdata==0.11.0",
    "tiktoken==0.14.0",
    "omegaconf==2.4.0",
    "antlr4-python3-runtime==4.9.3",
    "kagglehub==1.0.3",
)
"""What they import and the checkout has not, in versions that import beside its torch."""
ENVIRONMENT = BENCH / "venv-kd"
READY = ENVIRONMENT / "ready"
NUM_POSITIONS, COMPARED = 512, 2
REPETITIONS = 5
TORCHTUNE_CHUNKS = 8
"""Its default."""


def run_packaged(package: str) -> dict[str, Any]:
    """The child's result. Makes the environment on first use.

    Raises:
        RuntimeError: the package cannot be installed or imported, with the last line of the reason.
    """
    if not READY.is_file():
        _make()
    command = [str(ENVIRONMENT / "bin" / "python"), "-m", "tests.bench.kd_packages", package]
    # OMP_NUM_THREADS comes from this process.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRL_EXPERIMENTAL_SILENCE": "1"}
    result: dict[str, Any] = json.loads(_said_by(command, environment).splitlines()[-1])
    return result


def _make() -> None:
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    _said_by([sys.executable, "-m", "venv", str(ENVIRONMENT)], dict(os.environ))
    python = str(ENVIRONMENT / "bin" / "python")
    # Without their dependencies: torch and transformers must be those of the checkout.
    wanted = [*PACKAGES.values(), *NEEDED]
    _said_by([python, "-m", "pip", "install", "--quiet", "--no-deps", *wanted], dict(os.environ))
    library = f"python{sys.version_info.major}.{sys.version_info.minor}"
    folder = ENVIRONMENT / "lib" / library / "site-packages"
    (folder / "checkout.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    READY.touch()


def _said_by(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise RuntimeError(f"{Path(command[0]).name} {' '.join(command[1:4])} failed: {lines[-1]}")
    return done.stdout


def _child(package: str) -> dict[str, Any]:
    inputs = HeadInputs.make(NUM_POSITIONS, torch.float32)
    teacher = _Teacher.make(NUM_POSITIONS)
    result: dict[str, Any] = {"positions": NUM_POSITIONS, "repetitions": REPETITIONS}
    for name, theirs in LOSSES[package].items():
        _compare(theirs)
        times = paired(
            partial(_backward, inputs, partial(theirs, teacher=teacher)),  # type: ignore[call-arg]
            partial(inputs.fused, inputs.targets, CE_AND_KL),
            REPETITIONS,
        )
        result[name] = {"ratio": times.ratio, "spread": times.spread}
    return result


def _backward(inputs: HeadInputs, loss: Callable[[HeadInputs], Tensor]) -> None:
    inputs.hidden_ND.grad = inputs.weight_VD.grad = None
    loss(inputs).backward()


def _compare(theirs: Callable[[HeadInputs, _Teacher], Tensor]) -> None:
    """On a few positions of which everything is kept, both must have the same gradient."""
    inputs, teacher = HeadInputs.make(COMPARED, torch.float32), _Teacher.make(COMPARED)
    _backward(inputs, partial(theirs, teacher=teacher))  # type: ignore[call-arg]
    assert inputs.weight_VD.grad is not None
    expected_VD = COMPARED * inputs.weight_VD.grad
    everything = Targets(
        inputs.targets.gold_N,
        torch.arange(V).expand(COMPARED, V),
        torch.log_softmax(teacher.logits_NV, 1),
        torch.full((COMPARED,), -torch.inf),
    )
    inputs.fused(everything, LossWeights(forward_kl=1))
    error = relative(inputs.weight_VD.grad, expected_VD)
    if error > 1e-4:
        raise RuntimeError(f"its gradient differs from ours by {error:.1e}: something else would be timed")


@dataclass(frozen=True)
class _Teacher:
    """Its dense logits are free; TRL's chunked loss makes them of so few numbers that they nearly are."""

    hidden_NT: Tensor
    weight_VT: Tensor
    logits_NV: Tensor

    @classmethod
    def make(cls, num_positions: int, width: int = 8) -> _Teacher:
        generator = torch.Generator().manual_seed(1)
        hidden_NT = torch.randn(num_positions, width, generator=generator)
        weight_VT = torch.randn(V, width, generator=generator)
        return cls(hidden_NT, weight_VT, hidden_NT @ weight_VT.T)


def _torchtune_chunked(inputs: HeadInputs, teacher: _Teacher) -> Tensor:
    from torchtune.modules.loss import ForwardKLWithChunkedOutputLoss

    # Its recipes put the hidden states of each chunk through the head.
    chunks_1CD = inputs.hidden_ND[None].chunk(TORCHTUNE_CHUNKS, 1)
    logits = [chunk_1CD @ inputs.weight_VD.T for chunk_1CD in chunks_1CD]
    teacher_logits = list(teacher.logits_NV[None].chunk(TORCHTUNE_CHUNKS, 1))
    loss: Tensor = ForwardKLWithChunkedOutputLoss(TORCHTUNE_CHUNKS)(logits, teacher_logits, inputs.targets.gold_N[None])
    return loss


def _trl_gkd(inputs: HeadInputs, teacher: _Teacher) -> Tensor:
    from trl.experimental.gkd import GKDTrainer

    logits_1NV = (inputs.hidden_ND @ inputs.weight_VD.T)[None]
    loss: Tensor = GKDTrainer.generalized_jsd_loss(
        logits_1NV, teacher.logits_NV[None], labels=inputs.targets.gold_N[None], beta=0
    )
    return loss


def _trl_chunked(inputs: HeadInputs, teacher: _Teacher) -> Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    divergence_N, _ = ChunkedDivergenceFunction.apply(
        inputs.hidden_ND, inputs.weight_VD, None, teacher.hidden_NT, teacher.weight_VT, None, 0.0
    )
    loss: Tensor = divergence_N.mean()
    return loss


LOSSES: dict[str, dict[str, Callable[[HeadInputs, _Teacher], Tensor]]] = {
    "torchtune": {"ForwardKLWithChunkedOutputLoss": _torchtune_chunked},
    "trl": {"GKDTrainer.generalized_jsd_loss": _trl_gkd, "ChunkedDivergenceFunction": _trl_chunked},
}
"""Forward KL of both packages, as a mean over the positions."""

if __name__ == "__main__":
    print(json.dumps(_child(sys.argv[1])))
