"""The real DeepSpeed engine against a plain PyTorch loop with dense logits, and its own sizes against each other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from tasks.artifacts.errors import BadInputError
from tasks.training.batches import Batch, CorpusRows, StepLoader, StepOrder, collate
from tasks.training.engine import DivergedError, DivergedMicroBatchError, StepResult, TrainingEngine, check_head
from tasks.training.losses import LossWeights
from tasks.training.processes import join
from tasks.training.settings import OptimizerRecipe, TrainingRecipe, TrainingRuntime
from tests.training.parts import VOCAB, make_model, make_row, make_rows

OPTIMIZER = OptimizerRecipe(learning_rate=1e-2, weight_decay=0.1, max_grad_norm=0.5)
ROWS_PER_STEP, STEPS = 8, 3
SOURCE = CorpusRows(make_rows()["train"])


def make_engine(
    scratch: Path,
    *,
    zero: int = 1,
    micro: int = 8,
    precision: str = "float32",
    checkpointing: bool = False,
    model: PreTrainedModel | None = None,
) -> TrainingEngine:
    recipe = TrainingRecipe(optimizer=OPTIMIZER, steps=STEPS, rows_per_step=ROWS_PER_STEP, precision=precision)
    runtime = TrainingRuntime(
        micro_batch_rows=micro,
        deepspeed_config=f"configs/deepspeed/zero{zero}.json",
        gradient_checkpointing=checkpointing,
        device="cpu",
    )
    return TrainingEngine(
        (model or make_model()).to(torch.float32 if precision == "float32" else torch.bfloat16),
        num_real=VOCAB,
        weights=LossWeights(kd=0, ce=1),
        recipe=recipe,
        runtime=runtime,
        processes=join(runtime, scratch),
    )


def train(scratch: Path, *, micro: int = 8, **settings: object) -> tuple[list[StepResult], dict[str, torch.Tensor]]:
    engine = make_engine(scratch, micro=micro, **settings)  # type: ignore[arg-type]
    loader = StepLoader(SOURCE, StepOrder(len(SOURCE), ROWS_PER_STEP, 0), STEPS, micro, 0, 1)
    results = []
    for step in range(STEPS):
        share = loader.load(step)
        results.append(engine.step(share.batches, share.num_targets, OPTIMIZER.learning_rate))
    loader.close()
    return results, {name: parameter.float().clone() for name, parameter in engine.parameters()}


def plain_torch() -> tuple[list[StepResult], dict[str, torch.Tensor]]:
    """One document at a time with all logits, float64, torch's own clipping and AdamW."""
    model: PreTrainedModel = make_model().double().train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=1e-2, betas=(0.9, 0.95)
    )
    order = StepOrder(len(SOURCE), ROWS_PER_STEP, 0)
    results = []
    for step in range(STEPS):
        losses, count = [], 0
        for index in order.rows(step):
            row = SOURCE[index]
            ids_T = torch.from_numpy(row.input_ids).long()
            labels_T = torch.where(torch.from_numpy(row.loss_mask) == 1, ids_T, -100)
            logits_PV = model(input_ids=ids_T[None]).logits[0, :-1, :VOCAB]
            losses.append(torch.nn.functional.cross_entropy(logits_PV, labels_T[1:], reduction="sum"))
            count += int((labels_T[1:] >= 0).sum())
        loss = sum(losses) / count
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        results.append(StepResult(loss.item(), 0.0, loss.item(), norm.item()))
    return results, {name: parameter.detach().float() for name, parameter in model.named_parameters()}


def assert_close(found: tuple[list, dict], expected: tuple[list, dict], values: float, weights: float) -> None:
    for a, b in zip(found[0], expected[0], strict=True):
        assert (a.loss, a.ce, a.grad_norm) == pytest.approx((b.loss, b.ce, b.grad_norm), rel=values)
        assert abs(a.kd) < 1e-6
    for name, weight in expected[1].items():
        assert (found[1][name] - weight).norm() <= weights * weight.norm() + 1e-7, name


def _without_key_biases(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A softmax over keys hardly sees them: so small a gradient rounds most, and Adam scales it up (4e-5 measured)."""
    return {name: weight for name, weight in weights.items() if not name.endswith("k_proj.bias")}


def test_equals_a_plain_loop_whatever_the_micro_batch_and_sharding(tmp_path: Path) -> None:
    """Gradients before clipping (their norm) and losses to 1e-5 in each of three steps; Adam's division by a root
    of small second moments leaves 1e-4 in single weights."""
    expected = plain_torch()
    for zero, micro in ((1, 8), (1, 1), (2, 2), (3, 4)):
        assert_close(train(tmp_path, zero=zero, micro=micro), expected, 1e-5, 1e-4)
    assert_close(train(tmp_path, zero=3, micro=4, checkpointing=True), expected, 1e-5, 1e-4)


def test_the_micro_batch_leaves_rounding_only(tmp_path: Path) -> None:
    """Against each other rather than against float64: losses, norms and final weights to 1e-5 in float32."""
    results, weights = train(tmp_path, micro=4)
    for micro in (1, 2):
        found = train(tmp_path, micro=micro)
        assert_close(found, (results, _without_key_biases(weights)), 1e-5, 1e-5)
        assert_close(found, (results, weights), 1e-5, 1e-4)


def test_bfloat16_is_accumulated_in_float32(tmp_path: Path) -> None:
    """ZeRO-1 takes another optimizer class in bfloat16, which once divided by the accumulation steps again."""
    expected, weights = train(tmp_path)
    for zero, micro in ((1, 8), (1, 2), (2, 2), (3, 2)):
        found, rounded = train(tmp_path, zero=zero, micro=micro, precision="bfloat16")
        # No comparison of weights one by one: a key bias has no gradient but rounding.
        assert_close((found, {}), (expected, {}), 1e-2, 0)
        difference = sum(float((rounded[name] - weight).norm()) ** 2 for name, weight in weights.items())
        assert difference < 1e-4 * sum(float(weight.norm()) ** 2 for weight in weights.values())


def test_a_document_is_judged_alone(tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    rows = make_rows()["train"][:6]
    alone = sum(engine.judge(collate([row])) for row in rows)
    together = engine.judge(collate(rows))
    assert torch.allclose(alone, together, rtol=1e-6)
    assert together[2] == sum(row.loss_mask[1:].sum() for row in rows)


def test_micro_batches_without_targets_and_with_broken_ones(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, micro=4)
    batches = [collate([make_row(6, seed) for seed in range(start, start + 4)]) for start in (0, 4)]
    masked = batches[1].without_targets()
    count = len(batches[0].positions_N)
    result = engine.step([batches[0], masked], count, 1e-3)
    assert result.loss > 0
    nothing = engine.step([batches[0].without_targets(), masked], 0, 1e-3)
    assert (nothing.loss, nothing.grad_norm) == (0, 0)
    with torch.no_grad():
        # The last padding row is in none of the documents until it is put there.
        for _, parameter in engine.parameters():
            if parameter.shape[0] == make_model().config.vocab_size:
                parameter[63] = torch.nan
    broken = Batch(batches[1].row_ids, batches[1].input_ids_BT.clone(), batches[1].positions_N, batches[1].targets)
    broken.input_ids_BT[:, 0] = 63
    with pytest.raises(DivergedMicroBatchError) as failure:
        engine.step([batches[0], broken], count + len(broken.positions_N), 1e-3)
    assert failure.value.index == 1


def test_documents_without_targets_change_nothing(tmp_path: Path) -> None:
    """Eight documents in two halves, and the same in one micro-batch beside one that is wholly masked."""
    rows = [make_row(length, seed) for seed, length in enumerate((6, 9, 4, 12, 7, 5, 8, 11))]
    masked = [dataclasses.replace(row, loss_mask=np.zeros_like(row.loss_mask)) for row in rows[:3]]
    count = len(collate(rows).positions_N)
    results, weights = [], []
    for batches in ([collate(rows[:4]), collate(rows[4:])], [collate([*rows, masked[0]]), collate(masked)]):
        engine = make_engine(tmp_path, micro=4)
        results.append([engine.step(batches, count, 1e-2) for _ in range(STEPS)])
        weights.append({name: parameter.clone() for name, parameter in engine.parameters()})
        assert engine.judge(collate(masked)).tolist() == [0, 0, 0]
    assert_close((results[1], weights[1]), (results[0], _without_key_biases(weights[0])), 1e-5, 1e-5)


@pytest.mark.parametrize(("zero", "precision"), [(1, "float32"), (1, "bfloat16"), (2, "bfloat16"), (3, "float32")])
def test_a_gradient_without_a_norm_ends_the_step(tmp_path: Path, zero: int, precision: str) -> None:
    """The loss is a number, the backward pass overflows. Inside DeepSpeed -1, a finite number, stands for the norm."""
    model = make_model()

    def overflow(_module: object, _inputs: object, hidden: torch.Tensor) -> None:
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: gradient * torch.inf)

    model.model.norm.register_forward_hook(overflow)
    engine = make_engine(tmp_path, zero=zero, precision=precision, model=model)
    batch = collate(make_rows()["train"][:8])
    with pytest.raises(DivergedError, match="gradient's norm is inf") as failure:
        engine.step([batch], len(batch.positions_N), 1e-3)
    assert not isinstance(failure.value, DivergedMicroBatchError)


def test_a_head_that_is_more_than_a_matrix_is_refused() -> None:
    model = make_model()
    check_head(model, VOCAB)
    with pytest.raises(BadInputError, match="64 rows for a tokenizer of 65"):
        check_head(model, 65)
    output = torch.nn.Linear(16, 64, bias=True)
    model.set_output_embeddings(output)
    with pytest.raises(BadInputError, match="plain head"):
        check_head(model, VOCAB)
