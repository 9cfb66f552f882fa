"""The rows of a transplanted model: each of the donor's tokens by its part of the plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tasks.artifacts.errors import BadInputError
from tasks.surgeon.compose import composed
from tasks.surgeon.plan import TransplantPlan
from tasks.surgeon.pursuit import anchored_pursuit, cosines, most_used_anchors
from tasks.surgeon.result import finite
from tasks.surgeon.stage import TransplantRecipe
from tasks.surgeon.stored_rows import StoredVocabulary, described_vocabulary, stored_vocabulary

_READS_DONOR_ROWS = ("omp_anchored", "omp", "common_interpolation")
MATRICES = ("embedding", "head")


@dataclass(frozen=True)
class Approximation:
    """Rows made from the donor's, before any factor."""

    rows: list[Tensor]
    """(N, D) for each matrix of the student, tokens in the plan's order."""
    reconstruction_cosine: dict[str, float | None] = field(default_factory=dict)
    """By matrix of the donor: mean cosine between its rows and the same sums over its own shared rows; None where it is
    not finite."""


def check_donor(
    recipe: TransplantRecipe, plan: TransplantPlan, student: Path, donor: Path, *, from_configs: bool = False
) -> None:
    """Refuses a donor whose weights cannot give what the method asks of them; `composed` reads none.

    `student` and `donor` are folders of models; `from_configs` takes config.json's word for the donor's weights.

    Raises:
        BadInputError: naming what is missing.
    """
    if recipe.method not in _READS_DONOR_ROWS or not len(plan.approximated_donor_ids):
        return
    vocabulary = described_vocabulary(donor) if from_configs else stored_vocabulary(donor)
    if vocabulary.num_rows < plan.real_vocab_size:
        raise BadInputError(
            f"the donor has {vocabulary.num_rows} embedding rows and its tokenizer ids up to "
            f"{plan.real_vocab_size - 1}; give a donor with its own tokenizer"
        )
    if vocabulary.tied and not described_vocabulary(student).tied:
        raise BadInputError(
            f"the donor's head is its embedding and the student has a head of its own, of which {recipe.method} would "
            f"learn nothing there; give an untied donor (a larger model of the family) or set recipe.method to composed"
        )


def anchored_rows(
    recipe: TransplantRecipe,
    plan: TransplantPlan,
    donor: StoredVocabulary,
    student_rows: list[Tensor],
    *,
    batch_size: int | None,
    device: torch.device,
    after_batch: Callable[[], None] = lambda: None,
) -> Approximation:
    """The approximated tokens by omp_anchored: coefficients from each matrix of the donor, for the student's like one.

    `student_rows` are the student's embedding and, if untied, its head, (R, D). `after_batch` is called after each
    batch of the pursuit.

    Raises:
        BadInputError: recipe.k is more than the number of anchors.
    """
    donor_ids_T, student_ids_T = plan.shared_donor_ids_S[plan.is_text_S], plan.shared_student_ids_S[plan.is_text_S]
    at = most_used_anchors(donor_ids_T, recipe.num_anchors)
    donor_ids_A, student_ids_A = torch.from_numpy(donor_ids_T[at]), torch.from_numpy(student_ids_T[at])
    targets_N = torch.from_numpy(plan.approximated_donor_ids)
    rows, cosine = [], {}
    for matrix, student_RD in enumerate(student_rows):
        anchors_AD, targets_ND = donor.rows(matrix, donor_ids_A).float(), donor.rows(matrix, targets_N).float()
        sums = anchored_pursuit(
            targets_ND, anchors_AD, recipe.k, batch_size=batch_size, device=device, after_batch=after_batch
        )
        rows.append(sums.over(student_ids_A).apply(student_RD))
        mean = float(cosines(sums.apply(anchors_AD), targets_ND).mean()) if len(sums) else 1.0
        cosine[MATRICES[matrix]] = finite(mean)
    return Approximation(rows, cosine)


def new_matrix(
    recipe: TransplantRecipe,
    plan: TransplantPlan,
    student_rows: list[Tensor],
    approximation: Approximation,
    matrix: int,
) -> Tensor:
    """The embedding (matrix 0) or the untied head (1) of the result, (plan.rows, D) in the student's dtype, on the CPU.

    Shared and mapped rows are the student's bit by bit; padding rows are zero.
    """
    student_RD = student_rows[matrix].cpu()
    result_VD = torch.zeros((plan.rows, student_RD.shape[1]), dtype=student_RD.dtype)
    result_VD[torch.from_numpy(plan.shared_donor_ids_S)] = student_RD[torch.from_numpy(plan.shared_student_ids_S)]
    for token in plan.mapped:
        result_VD[token.donor_id] = student_RD[token.student_id]
    if plan.composed:
        weighing = recipe.composition
        decay = (
            (weighing.embedding_decay, weighing.head_decay)[matrix] if len(student_rows) == 2 else weighing.tied_decay
        )
        sums = composed(list(plan.composed.values()), scale=weighing.scale, decay=decay)
        result_VD[torch.tensor(list(plan.composed))] = sums.apply(student_RD).to(result_VD.dtype)
    approximated_ND = approximation.rows[matrix].cpu().float() * recipe.new_row_scale
    result_VD[torch.from_numpy(plan.approximated_donor_ids)] = approximated_ND.to(result_VD.dtype)
    return result_VD
