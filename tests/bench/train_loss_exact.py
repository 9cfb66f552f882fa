"""The fused losses beside the dense float64 definition, finite differences, their zero, and other chunk sizes.

At the teacher: the entries that are kept and one bucket for all else, which is most of the mass here. At T = 2 the
targets come as a dump stores them, entries at 1 with normaliser and tail at 2, and are tempered as a training does it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tasks.logits.reader import LogitRow
from tasks.training.batches import collate
from tasks.training.losses import HeadForm, LossWeights, Targets, head_loss
from tasks.training.rows import CorpusRows, TemperedRows
from tests.bench.records import Measured, Measurement
from tests.bench.rows_train import DIVERGENCES, LOSSES
from tests.training.dense import dense_loss, drawn, gradients, relative, teacher

N, D, V, ROWS, K = 48, 64, 8192, 8256, 64
EMPTY = (0, 5, 63)
"""Empty slots of the first positions."""
FORM = HeadForm(V)
SEEDS = 3
CHUNKS = (1, 7, 16, 31, N)
TEMPERATURE = 2.0
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
    "everything": Case(
        LossWeights(0.6, reverse_kl=0.3, jsd=0.5, jsd_beta=0.4, ce=0.4, temperature=1.7, entropy_exponent=0.2),
        HeadForm(V, scale=0.7, softcap=12.0),
    ),
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
    for temperature, suffix in ((1.0, ""), (TEMPERATURE, ".tempered")):
        largest = dict.fromkeys(DIVERGENCES, 0.0)
        tails: list[Tensor] = []
        for seed in range(SEEDS):
            hidden_ND, weight_RD, _ = _tensors(seed)
            logits_NV = hidden_ND.double() @ weight_RD[:V].double().T
            for num_kept, empty in ((K, EMPTY), (1, ())):
                targets = stored_targets(logits_NV, num_kept, temperature, empty)
                tails.append(targets.tail_logprob_N.exp())
                for name in DIVERGENCES:
                    weights = replace(CASES[name].weights, temperature=temperature)
                    found = _largest_position(hidden_ND, weight_RD, targets, weights)
                    largest[name] = max(largest[name], found)
        tail_N = torch.cat(tails)
        for name in DIVERGENCES:
            yield Measured(
                f"train.at_teacher.{name}{suffix}",
                largest[name],
                f"float32, each position by itself, T = {temperature:g}; {K} and 1 kept entries, a mass of "
                f"{float(tail_N.min()):.2f} to {float(tail_N.max()):.3f} in the bucket of all others; {SAID}, "
                f"teacher = student",
                SEEDS,
            )


def _largest_position(hidden_ND: Tensor, weight_RD: Tensor, targets: Targets, weights: LossWeights) -> float:
    """Size of the largest loss of a position."""
    places = [slice(position, position + 1) for position in range(len(hidden_ND))]
    losses = [head_loss(hidden_ND[at], weight_RD, targets.rows(at), form=FORM, weights=weights)[0] for at in places]
    return max(abs(float(loss)) for loss in losses)


def stored_targets(logits_NV: Tensor, num_kept: int, temperature: float, empty: tuple[int, ...]) -> Targets:
    """What a training makes of a stored row of this teacher, at a temperature that the dump took."""
    at_1, at_T = teacher(logits_NV, num_kept, 1.0, empty), teacher(logits_NV, num_kept, temperature, empty)
    lse_N = (torch.log_softmax(logits_NV, 1) / temperature).logsumexp(1).float()
    count = len(logits_NV)
    row = LogitRow(
        row_id="",
        input_ids=np.concatenate(([0], at_1.gold_N.numpy())).astype(np.int32),
        loss_mask=np.ones(count + 1, np.uint8),
        topk_ids_PK=at_1.topk_ids_NK.numpy().astype(np.int32),
        topk_logprobs_PK=at_1.topk_logprobs_NK.numpy(),
        tail_logprob_P=at_1.tail_logprob_N.numpy(),
        gold_logprob_P=np.zeros(count, np.float32),
        tempered_lse_PM=lse_N[:, None].numpy(),
        tempered_tail_PM=at_T.tail_logprob_N[:, None].numpy(),
        counts_PK=np.empty((count, 0), np.uint16),
    )
    rows = CorpusRows([row])
    return collate([(rows if temperature == 1 else TemperedRows(rows, temperature, 0)).many([0])]).targets


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
