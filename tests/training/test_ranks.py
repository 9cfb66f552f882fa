"""DeepSpeed's engines over two processes in the precision of a real training, and what they resume from one process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tasks.training.engine import STATE, StepResult
from tasks.training.universal import convert
from tests.training.engines import make_engine, take, weights_of
from tests.training.ranks import PASS_ROWS, Arm, Came, run_arms, small_model

STEPS = (0, 1, 2)
RESUMED = (("0", "float32"), ("1", "float32"), ("2", "float32"), ("1", "bfloat16"), ("2", "bfloat16"))
"""ZeRO stage and precision of what goes on from one process."""
pytestmark = pytest.mark.slow
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Trained:
    """What an arm came to, and its weights at its beginning and its end."""

    came: Came
    begin: Weights
    end: Weights


class Began:
    """A training in one process with ZeRO-1, its checkpoint after two steps, and how it went on."""

    def __init__(self, folder: Path, precision: str) -> None:
        folder.mkdir()
        engine = make_engine(folder, precision=precision, model=small_model())
        take(engine, 0, PASS_ROWS, learning="embedding")
        take(engine, 1, PASS_ROWS)
        self.checkpoint = folder / "checkpoint"
        engine.save(self.checkpoint)
        convert(self.checkpoint, STATE)
        self.weights: Weights = weights_of(engine)
        self.results: list[StepResult] = [take(engine, step, PASS_ROWS) for step in (2, 3)]
        self.end: Weights = weights_of(engine)


@pytest.fixture(scope="module")
def began(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Began]:
    folder = tmp_path_factory.mktemp("began")
    return {precision: Began(folder / precision, precision) for precision in ("float32", "bfloat16")}


@pytest.fixture(scope="module")
def in_two(tmp_path_factory: pytest.TempPathFactory, began: dict[str, Began]) -> dict[tuple[str, ...], Trained]:
    """Every arm in one launch of two processes, by ZeRO stage, precision, and "resumed" where it is."""
    folder = tmp_path_factory.mktemp("two")
    arms: dict[tuple[str, ...], Arm] = {}
    for zero in ("0", "1", "2", "3"):
        arms[zero, "bfloat16"] = Arm(zero, "bfloat16", STEPS, (f"{folder}/begin-{zero}", f"{folder}/end-{zero}"))
    for zero, precision in RESUMED:
        files = (f"{folder}/begin-{zero}-{precision}", f"{folder}/end-{zero}-{precision}")
        arms[zero, precision, "resumed"] = Arm(zero, precision, (2, 3), files, str(began[precision].checkpoint))
    came = run_arms(list(arms.values()), 2)
    return {
        name: Trained(one, load_file(arm.weights[0]), load_file(arm.weights[1]))
        for (name, arm), one in zip(arms.items(), came, strict=True)
    }


@pytest.mark.parametrize("zero", ["0", "1", "2", "3"])
def test_bfloat16_is_the_same_over_two_processes(
    tmp_path: Path, in_two: dict[tuple[str, ...], Trained], zero: str
) -> None:
    """The passes are the same, so that two processes differ from one by how float32 gradients are summed.

    A gradient that was averaged in bfloat16 would be off by 2⁻⁹ of each value. A weight that then rounds to its other
    neighbour in bfloat16 would move by 2⁻⁸ of itself; of these few none does.
    """
    engine = make_engine(tmp_path, zero=zero, precision="bfloat16", model=small_model())
    results = [take(engine, step, PASS_ROWS) for step in STEPS]
    found = in_two[zero, "bfloat16"]
    for values, result in zip(found.came.values, results, strict=True):
        assert values == pytest.approx([result.loss, result.grad_norm], rel=1e-5)
    assert_near(found.end, weights_of(engine), 1e-5)


@pytest.mark.parametrize(("zero", "precision"), RESUMED)
def test_two_processes_go_on_from_one(
    began: dict[str, Began], in_two: dict[tuple[str, ...], Trained], zero: str, precision: str
) -> None:
    """Each has a part of every matrix and its moments; weight decay and step counts differ by group."""
    found, expected = in_two[zero, precision, "resumed"], began[precision]
    assert all(torch.equal(weight, expected.weights[name]) for name, weight in found.begin.items())
    assert found.came.steps == {"embedding": 2, "matrices": 1, "vectors": 1}
    for values, result in zip(found.came.values, expected.results, strict=True):
        assert values == pytest.approx([result.loss, result.grad_norm], rel=1e-5)
    assert_near(found.end, expected.end, 1e-5)


def assert_near(found: Weights, expected: Weights, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert (found[name] - weight).norm() <= tolerance * weight.norm(), name
