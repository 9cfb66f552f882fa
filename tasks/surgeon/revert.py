"""`revert`: a trained student back in the vocabulary that it came from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

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
from tasks.surgeon.architecture import check_plain_head, check_same_architecture
from tasks.surgeon.new_rows import MATRICES
from tasks.surgeon.result import check_tokenizer, compared, finite, write_record
from tasks.surgeon.reversion_rows import TokenMatch, check_match, match_tokens, reverted_matrix
from tasks.surgeon.stage import RevertRecipe, SurgeonRuntime
from tasks.surgeon.steps import Steps
from tasks.worker.job import Job


def revert(job: Job, recipe: RevertRecipe, runtime: SurgeonRuntime) -> None:
    """The trained trunk with the original's tokenizer and configs, in the original's dtype; rows by recipe.strategy."""
    started = time.monotonic()
    trained_directory, original_directory = job.input("trained").directory(), job.input("original").directory()
    device = resolve_device(runtime.device)
    tokenizer, foreign_tokenizer = load_tokenizer(original_directory), load_tokenizer(trained_directory)
    match = match_tokens(tokenizer, foreign_tokenizer, recipe.special_tokens)
    check_match(recipe, match)
    empty = empty_causal_lm(original_directory)
    check_plain_head(empty, "original")
    check_same_architecture(empty_causal_lm(trained_directory), empty)

    steps = Steps(job, 3)
    steps.next()
    original = load_causal_lm(original_directory, dtype=stored_dtype(original_directory), device=device)
    num_rows = vocabulary_weights(original)[0].shape[0]
    before, stopped_before = bits_per_byte(original, tokenizer), stopped_prompts(original, tokenizer)
    steps.leave_if_asked()
    trained = load_causal_lm(trained_directory, dtype=stored_dtype(trained_directory), device=device)
    foreign, stopped_foreign = bits_per_byte(trained, foreign_tokenizer), stopped_prompts(trained, foreign_tokenizer)

    steps.next()
    # Weights may say otherwise than their config.json: a head of its own beside an embedding that is said to be tied.
    check_same_architecture(trained, original)
    num_values, square_moved, square_norm = _take_trunk(original, trained)
    rows = _take_rows(original, trained, recipe, match, runtime.batch_size, steps.leave_if_asked)
    del trained
    after, stopped_after = bits_per_byte_of_result(original, tokenizer), stopped_prompts(original, tokenizer)

    steps.next()
    out = job.new_directory("out")
    save_causal_lm(original, out)
    source = weights_directory(original_directory)
    for name in ("config.json", "generation_config.json"):
        if (source / name).is_file():
            write_config(out / name, read_json(source / name))
    copy_tokenizer_files(original_directory, out)
    check_tokenizer(out, tokenizer)
    tokens = {"shared_tokens": len(match.original_ids_S), "other_tokens": len(match.other_ids_N)}
    write_record(
        out,
        {
            "mode": "revert",
            "strategy": recipe.strategy,
            **tokens,
            **rows,
            "real_vocab_size": real_vocab_size(tokenizer),
            "rows": num_rows,
        },
    )
    job.complete(
        out,
        {
            **compared(before, after),
            "stops": compared_stops(stopped_before, stopped_after),
            "bits_per_byte_before_reversion": foreign,
            "stops_before_reversion": sum(stopped_foreign),
            "strategy": recipe.strategy,
            **tokens,
            **rows,
            "num_rows": num_rows,
            "real_vocab_size": real_vocab_size(tokenizer),
            "trunk_parameters": num_values,
            "trunk_moved_relative": finite(math.sqrt(square_moved / square_norm)),
            "seconds": time.monotonic() - started,
        },
    )


def _take_rows(
    original: PreTrainedModel,
    trained: PreTrainedModel,
    recipe: RevertRecipe,
    match: TokenMatch,
    batch_size: int | None,
    after_batch: Callable[[], None],
) -> dict[str, dict[str, float | None]]:
    """Gives `original` the rows of recipe.strategy.

    Returns, by matrix, ‖change‖ / ‖before‖ over all rows, and how well sums of shared rows give the others; None where
    that is not finite.
    """
    moved: dict[str, float | None] = {}
    cosine: dict[str, float | None] = {}
    with torch.no_grad():
        weights = zip(MATRICES, vocabulary_weights(original), vocabulary_weights(trained), strict=False)
        for name, weight, trained_VD in weights:
            matrix = reverted_matrix(
                recipe,
                match,
                weight,
                trained_VD,
                batch_size=batch_size,
                device=weight.device,
                after_batch=after_batch,
            )
            change = (matrix.rows_RD.float() - weight.float()).norm()
            moved[name] = finite(float(change / weight.float().norm()))
            if matrix.reconstruction_cosine is not None:
                cosine[name] = finite(matrix.reconstruction_cosine)
            weight.copy_(matrix.rows_RD)
    return {"rows_moved_relative": moved, "reconstruction_cosine": cosine}


def _take_trunk(original: PreTrainedModel, trained: PreTrainedModel) -> tuple[int, float, float]:
    """Copies every tensor but the embedding and the head from `trained`.

    Returns the number of values copied, the sum of the squares of their changes, and of their former squares.
    """
    vocabulary = {id(weight) for weight in vocabulary_weights(original)}
    sources = dict(trained.named_parameters())
    num_values, square_moved, square_norm = 0, 0.0, 0.0
    with torch.no_grad():
        for name, target in original.named_parameters():
            if id(target) in vocabulary:
                continue
            source = sources[name]
            num_values += target.numel()
            square_moved += float((source.float() - target.float()).square().sum())
            square_norm += float(target.float().square().sum())
            target.copy_(source)
    return num_values, square_moved, square_norm
