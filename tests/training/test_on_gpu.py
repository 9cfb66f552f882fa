"""The fused loss and training steps on a CUDA device against the CPU's in float32."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from tasks.training.losses import HeadForm, LossWeights, head_loss
from tests.training.dense import relative, teacher
from tests.training.engines import make_engine, take

pytestmark = pytest.mark.gpu
ERROR = {"float32": 1e-4, "bfloat16": 3e-2}
"""Relative: bfloat16 keeps 8 bits."""
N, V, D = 48, 500, 64


@pytest.mark.parametrize("dtype", ERROR)
def test_a_fused_loss_and_its_gradients_are_the_cpus(cuda: str, dtype: str) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_ND, weight_VD = (torch.randn(rows, D, generator=generator) / D**0.25 for rows in (N, V))
    targets = teacher(3 * torch.randn(N, V, generator=generator), 16, 1.0, ())

    def computed(device: str, kind: torch.dtype) -> tuple[float, torch.Tensor, torch.Tensor]:
        leaves = [part.to(device, kind, copy=True).requires_grad_() for part in (hidden_ND, weight_VD)]
        loss, _ = head_loss(
            *leaves, targets.to(torch.device(device)), form=HeadForm(V), weights=LossWeights(forward_kl=0.9, ce=0.1)
        )
        loss.backward()
        gradients = [leaf.grad.float().cpu() for leaf in leaves if leaf.grad is not None]
        return loss.item(), gradients[0], gradients[1]

    expected, found = computed("cpu", torch.float32), computed(cuda, getattr(torch, dtype))
    assert found[0] == pytest.approx(expected[0], rel=ERROR[dtype])
    assert relative(found[1], expected[1]) < ERROR[dtype]
    assert relative(found[2], expected[2]) < ERROR[dtype]


@pytest.mark.parametrize("precision", ERROR)
def test_training_steps_are_the_cpus(cuda: str, precision: str, tmp_path: Path) -> None:
    expected, found = (
        _losses_in_a_process_of_its_own(tmp_path / name, kind, device)
        for name, kind, device in (("cpu", "float32", "cpu"), ("gpu", precision, cuda))
    )
    assert found == pytest.approx(expected, rel=ERROR[precision])


def _losses_in_a_process_of_its_own(scratch: Path, precision: str, device: str) -> list[float]:
    """DeepSpeed has one accelerator a process, and torch one group."""
    scratch.mkdir()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_losses, scratch, precision, device).result()


def _losses(scratch: Path, precision: str, device: str) -> list[float]:
    engine = make_engine(scratch, precision=precision, device=device)
    return [take(engine, step).loss for step in range(3)]
