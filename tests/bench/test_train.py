"""What the measurements of the training engine rest on, on made-up parts."""

from __future__ import annotations

import pytest
import torch

from tests.bench import train_loss_speed
from tests.bench.harness import measure
from tests.bench.rows_train import TRAIN
from tests.bench.train_loss_exact import stored_targets
from tests.bench.training import apart
from tests.training.dense import teacher


def test_a_processor_without_bfloat16_leaves_that_row_unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_loss_speed, "emulated_bfloat16", lambda: "1.3 GFLOP/s in bfloat16")
    name = "train.loss.over_products.bf16"
    declared = [row for row in TRAIN if row.name == name]
    measurements = [one for one in train_loss_speed.MEASUREMENTS if name in one.patterns]
    [row] = measure(declared, measurements)
    assert (row.value, row.ok) == (None, False)
    assert "1.3 GFLOP/s in bfloat16: measure this row on a processor with" in row.conditions


@pytest.mark.parametrize(("num_kept", "empty"), [(6, (0, 2, 5)), (1, ())])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_stored_targets_are_the_dense_teachers(num_kept: int, empty: tuple[int, ...], temperature: float) -> None:
    logits_NV = 3 * torch.randn(7, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = stored_targets(logits_NV, num_kept, temperature, empty)
    for one, other in zip(found.tensors(), teacher(logits_NV, num_kept, temperature, empty).tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_weights_are_apart_by_a_part_of_their_way() -> None:
    start = {"a": torch.zeros(2, 3), "b": torch.zeros(2)}
    expected = {"a": torch.ones(2, 3), "b": torch.zeros(2)}
    found = {"a": torch.full((2, 3), 1.25), "b": torch.zeros(2)}
    assert apart(found, expected, start) == pytest.approx(0.25)
    found["b"] += 1
    assert apart(found, expected, start) == pytest.approx(((6 / 16 + 2) / 6) ** 0.5)
    assert apart(expected, expected, start) == 0
