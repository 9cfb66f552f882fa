"""The fused losses beside the dense float64 definition, finite differences, their zero, and other chunk sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.training.losses import HeadForm, LossWeights, Targets, head_loss
from tests.bench.records import Measured, Measurement
from tests.bench.rows_train import LOSSES
from tests.training.dense import dense_loss, drawn, gradients, relative, teacher

N, D, V, ROWS, K = 48, 64, 8192, 8256, 64
EMPTY = (0, 5, 63)
"""Empty slots of the first positions."""
FORM = HeadForm(V)
SEEDS = 3
CHUNKS = (1, 7, 16, 31, N)
SAID = f"{N} positions, {V} ids and {ROWS - V} padding rows, hidden {D}, {K} entries, {SEEDS} random heads"


@dataclass(frozen=True)
class Case:
    """One row's loss."""

    weights: LossWeights
    form: HeadForm = FORM
    num_draws: int = 0


CASES = {
    "forward_kl": Case(LossWeights(forward_kl=1)),
    "reverse_kl": Case(LossWeights(reverse_kl=1)),
    "jsd": Case(LossWeights(jsd=1, jsd_beta=0.3)),
    "ce": Case(LossWeights(ce=1)),
    "mixed": Case(LossWeights(forward_kl=0.7, reverse_kl=0.2, jsd=0.4, ce=0.3)),
    "tempered": Case(LossWeights(forward_kl=1, ce=0.5, temperature=2)),
    "entropy_weighted": Case(LossWeights(forward_kl=1, ce=0.3, entropy_exponent=0.5)),
    "sampled": Case(LossWeights(forward_kl=1), num_draws=50),
    "softcapped": Case(LossWeights(forward_kl=1, ce=0.3), HeadForm(V, scale=0.5, softcap=8.0)),
}
assert tuple(CASES) == LOSSES


def _tensors(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states and head, exact in float32, and a teacher's logits: peaked as a language model's are."""
    generator = torch.Generator().manual_seed(seed)
    hidden_ND = torch.randn(N, D, generator=generator)
    weight_RD = torch.randn(ROWS, D, generator=generator) / 4
    teacher_NV = 4 * torch.randn(N, V, generator=generator, dtype=torch.float64)
    return hidden_ND, weight_RD, teacher_NV


def _targets(teacher_NV: Tensor, case: Case, seed: int) -> Targets:
    if case.num_draws:
        return drawn(teacher_NV, case.num_draws, seed)
    return teacher(teacher_NV, K, case.weights.temperature, EMPTY)


def _exact() -> Iterator[Measured]:
    for name, case in CASES.items():
        errors = {"value": 0.0, "gradient": 0.0}
        for seed in range(SEEDS):
            hidden_ND, weight_RD, teacher_NV = _tensors(seed)
            targets = _targets(teacher_NV, case, seed)
            expected = gradients(
                lambda h, w, c=case, t=targets: dense_loss(h, w, t, c.form, c.weights)[0],  # type: ignore[misc]
                hidden_ND.double(),
                weight_RD.double(),
            )
            found = _found(hidden_ND, weight_RD, targets, case, N // 3)
            value, *parts = (relative(one, other) for one, other in zip(found, expected, strict=True))
            errors = {
                "value": max(errors["value"], value),
                "gradient": max(errors["gradient"], *parts),
            }
        for what, error in errors.items():
            said = "value of the sum" if what == "value" else "the larger of dX and dW, length of the difference"
            yield Measured(f"train.exact.{what}.{name}", error, f"{said}; {SAID}; {case.weights}", SEEDS)


def _found(
    hidden_ND: Tensor, weight_RD: Tensor, targets: Targets, case: Case, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    return gradients(
        lambda h, w: head_loss(h, w, targets, form=case.form, weights=case.weights, chunk_tokens=chunk)[0],
        hidden_ND,
        weight_RD,
    )


def _gradcheck() -> Iterator[Measured]:
    count, width, real = 5, 4, 23
    failed = []
    for name, case in CASES.items():
        hidden_ND, weight_RD, teacher_NV = _tensors(0)
        form = HeadForm(real, case.form.scale, case.form.softcap)
        part_NV = teacher_NV[:count, :real]
        weights = case.weights
        targets = drawn(part_NV, 9, 0) if case.num_draws else teacher(part_NV, 6, weights.temperature, (0, 2))
        inputs = (hidden_ND[:count, :width].double(), weight_RD[: real + 2, :width].double())
        if not torch.autograd.gradcheck(
            lambda h, w, t=targets, f=form, lw=weights: head_loss(h, w, t, form=f, weights=lw, chunk_tokens=2)[0],  # type: ignore[misc]
            tuple(tensor.clone().requires_grad_() for tensor in inputs),
            raise_exception=False,
        ):
            failed.append(name)
    yield Measured(
        "train.gradcheck_failures",
        len(failed),
        f"of {len(CASES)}: {', '.join(CASES)}; {count} positions, {real} ids; torch.autograd.gradcheck with its own "
        f"tolerances{'; failed: ' + ', '.join(failed) if failed else ''}",
    )


def _at_teacher() -> Iterator[Measured]:
    for name in ("forward_kl", "reverse_kl", "jsd"):
        largest = 0.0
        for seed in range(SEEDS):
            hidden_ND, weight_RD, _ = _tensors(seed)
            targets = teacher(hidden_ND.double() @ weight_RD[:V].double().T, K, empty=EMPTY)
            for position in range(N):
                rows = slice(position, position + 1)
                loss, _ = head_loss(
                    hidden_ND[rows], weight_RD, targets.rows(rows), form=FORM, weights=CASES[name].weights
                )
                largest = max(largest, abs(float(loss)))
        yield Measured(
            f"train.at_teacher.{name}", largest, f"float32, each position by itself; {SAID}, teacher = student", SEEDS
        )


def _chunks() -> Iterator[Measured]:
    largest, where = 0.0, ""
    for name, case in CASES.items():
        hidden_ND, weight_RD, teacher_NV = _tensors(0)
        targets = _targets(teacher_NV, case, 0)
        first, *others = (_found(hidden_ND, weight_RD, targets, case, chunk) for chunk in CHUNKS)
        for chunk, other in zip(CHUNKS[1:], others, strict=True):
            change = max(relative(one, two) for one, two in zip(other, first, strict=True))
            if change > largest:
                largest, where = change, f"{name} at {chunk} positions a chunk"
    yield Measured(
        "train.invariance.chunk",
        largest,
        f"float32; loss, dX and dW of {len(CASES)} losses at {', '.join(map(str, CHUNKS))} positions a chunk; largest: "
        f"{where}; {SAID}",
    )


MEASUREMENTS = [
    Measurement("train_loss_exact", _exact, ("train.exact.*",)),
    Measurement("train_loss_gradcheck", _gradcheck, ("train.gradcheck_failures",)),
    Measurement("train_loss_at_teacher", _at_teacher, ("train.at_teacher.*",)),
    Measurement("train_loss_chunks", _chunks, ("train.invariance.chunk",)),
]
