"""`transplant`: a student in the donor's vocabulary, with everything that a model directory says about it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from tasks.modeling.bits_per_byte import bits_per_byte, bits_per_byte_of_result
from tasks.modeling.model_files import (
    copy_tokenizer_files,
    empty_causal_lm,
    load_causal_lm,
    read_json,
    resolve_device,
    save_causal_lm,
    stored_dtype,
    vocabulary_weights,
    weights_directory,
    write_config,
)
from tasks.modeling.stopping import compared_stops, stopped_prompts
from tasks.modeling.tokenizer_files import load_tokenizer, real_vocab_size
from tasks.surgeon.architecture import check_plain_head
from tasks.surgeon.ends import listed_ends, token_ids
from tasks.surgeon.new_rows import Approximation, anchored_rows, check_donor, new_matrix
from tasks.surgeon.plan import PLAN_FILE, TransplantPlan, plan_transplant
from tasks.surgeon.result import check_tokenizer, compared, write_record
from tasks.surgeon.stage import SurgeonRuntime, TransplantRecipe
from tasks.surgeon.steps import Steps
from tasks.surgeon.stored_rows import stored_vocabulary
from tasks.worker.job import Job


def transplant(job: Job, recipe: TransplantRecipe, runtime: SurgeonRuntime) -> None:
    """The student with the donor's vocabulary."""
    started = time.monotonic()
    student_directory, donor_directory = job.input("student").directory(), job.input("donor").directory()
    student_tokenizer, donor_tokenizer = load_tokenizer(student_directory), load_tokenizer(donor_directory)
    multiple = recipe.pad_rows_to_multiple_of
    rows = recipe.rows or math.ceil(real_vocab_size(donor_tokenizer) / multiple) * multiple
    plan = plan_transplant(student_tokenizer, donor_tokenizer, recipe, rows, listed_ends(donor_directory))
    # Before the student is loaded, which takes minutes where it is large.
    check_plain_head(empty_causal_lm(student_directory), "student")
    check_donor(recipe, plan, student_directory, donor_directory)
    device = resolve_device(runtime.device)
    model = load_causal_lm(student_directory, dtype=stored_dtype(student_directory), device=device)
    student_rows = [weight.detach() for weight in vocabulary_weights(model)]

    steps = Steps(job, 4)
    steps.next()
    before, stopped_before = bits_per_byte(model, student_tokenizer), stopped_prompts(model, student_tokenizer)

    steps.next()
    began = time.monotonic()
    approximation = _approximation(job, recipe, runtime, plan, student_rows, steps.leave_if_asked)
    matrices = [new_matrix(recipe, plan, student_rows, approximation, matrix) for matrix in range(len(student_rows))]
    seconds_of_rows = time.monotonic() - began

    steps.next()
    _set_matrices(model, matrices)
    ids = token_ids(donor_directory, donor_tokenizer)
    for name, value in ids.items():
        setattr(model.config, name, value)
    # The ids alone: a way of sampling that transformers finds odd, such as a temperature without do_sample, is refused
    # when a changed object is saved.
    model.generation_config = GenerationConfig(**ids)
    after, stopped_after = bits_per_byte_of_result(model, donor_tokenizer), stopped_prompts(model, donor_tokenizer)

    steps.next()
    out = job.new_directory("out")
    save_causal_lm(model, out)
    write_config(out / "generation_config.json", _generation_config(student_directory, ids))
    copy_tokenizer_files(donor_directory, out)
    check_tokenizer(out, donor_tokenizer)
    made = {"method": recipe.method, "reconstruction_cosine": approximation.reconstruction_cosine}
    write_record(out, {"mode": "transplant", **made, **plan.record()})
    (out / PLAN_FILE).write_text(plan.compositions(), encoding="utf-8")
    counts = {f"{part}_tokens": by_kind["total"] for part, by_kind in plan.counts.items()}
    job.complete(
        out,
        {
            **compared(before, after),
            "stops": compared_stops(stopped_before, stopped_after),
            **made,
            **counts,
            "num_rows": plan.rows,
            "real_vocab_size": plan.real_vocab_size,
            "seconds_of_rows": seconds_of_rows,
            "seconds": time.monotonic() - started,
        },
    )


def _approximation(
    job: Job,
    recipe: TransplantRecipe,
    runtime: SurgeonRuntime,
    plan: TransplantPlan,
    student_rows: list[Tensor],
    after_batch: Callable[[], None],
) -> Approximation:
    """Rows by recipe.method of the tokens that the plan leaves to it. mergekit's methods have no batches to look
    between."""
    if not len(plan.approximated_donor_ids):
        return Approximation([torch.empty((0, rows_RD.shape[1])) for rows_RD in student_rows])
    donor_directory, device = job.input("donor").directory(), resolve_device(runtime.device)
    if recipe.method == "omp_anchored":
        donor = stored_vocabulary(donor_directory)
        return anchored_rows(
            recipe, plan, donor, student_rows, batch_size=runtime.batch_size, device=device, after_batch=after_batch
        )
    # mergekit costs 2 CPU-seconds that this project's own methods do not need.
    from tasks.surgeon.tokensurgeon import tokensurgeon_rows

    rows = tokensurgeon_rows(
        job.new_directory("tokensurgeon"),
        job.input("student").directory(),
        donor_directory,
        recipe,
        torch.from_numpy(plan.approximated_donor_ids),
        batch_size=runtime.batch_size,
        device=device,
    )
    return Approximation(rows)


def _set_matrices(model: PreTrainedModel, matrices: list[Tensor]) -> None:
    """Puts in the new embedding and, if untied, the new head, whatever their number of rows."""
    model.resize_token_embeddings(matrices[0].shape[0], mean_resizing=False)
    with torch.no_grad():
        for weight, rows_VD in zip(vocabulary_weights(model), matrices, strict=True):
            weight.copy_(rows_VD)


def _generation_config(student_directory: Path, ids: dict[str, Any]) -> dict[str, Any]:
    """The student's way of sampling, as it is written, with the donor's token ids."""
    stored = weights_directory(student_directory) / "generation_config.json"
    values = {**(read_json(stored) if stored.is_file() else {}), **ids}
    return {name: value for name, value in values.items() if value is not None}
