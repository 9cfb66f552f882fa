"""`revert`: a trained student back in the vocabulary that it came from."""

from __future__ import annotations

import math
import time

import torch
from transformers import PreTrainedModel

from tasks.artifacts.errors import BadInputError
from tasks.modeling.bits_per_byte import bits_per_byte
from tasks.modeling.model_files import (
    copy_tokenizer_files,
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
from tasks.surgeon.new_rows import MATRICES
from tasks.surgeon.result import check_tokenizer, compared, write_record
from tasks.surgeon.reversion_rows import TokenMatch, check_match, match_tokens, reverted_matrix
from tasks.surgeon.stage import RevertRecipe, SurgeonRuntime
from tasks.worker.job import Job


def revert(job: Job, recipe: RevertRecipe, runtime: SurgeonRuntime) -> None:
    """The trained trunk with the original's tokenizer and configs, in the original's dtype; rows by recipe.strategy."""
    started = time.monotonic()
    trained_directory, original_directory = job.input("trained").directory(), job.input("original").directory()
    device = resolve_device(runtime.device)
    tokenizer, foreign_tokenizer = load_tokenizer(original_directory), load_tokenizer(trained_directory)
    match = match_tokens(tokenizer, foreign_tokenizer, recipe.special_tokens)
    check_match(recipe, match)

    job.progress(0, 3, "steps")
    original = load_causal_lm(original_directory, dtype=stored_dtype(original_directory), device=device)
    num_rows = vocabulary_weights(original)[0].shape[0]
    before, stopped_before = bits_per_byte(original, tokenizer), stopped_prompts(original, tokenizer)
    trained = load_causal_lm(trained_directory, dtype=stored_dtype(trained_directory), device=device)
    foreign, stopped_foreign = bits_per_byte(trained, foreign_tokenizer), stopped_prompts(trained, foreign_tokenizer)

    job.progress(1, 3, "steps")
    num_values, square_moved, square_norm = _take_trunk(original, trained)
    rows = _take_rows(original, trained, recipe, match, runtime.batch_size)
    del trained
    after, stopped_after = bits_per_byte(original, tokenizer), stopped_prompts(original, tokenizer)

    job.progress(2, 3, "steps")
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
            "trunk_moved_relative": math.sqrt(square_moved / square_norm),
            "seconds": time.monotonic() - started,
        },
    )


def _take_rows(
    original: PreTrainedModel,
    trained: PreTrainedModel,
    recipe: RevertRecipe,
    match: TokenMatch,
    batch_size: int | None,
) -> dict[str, dict[str, float]]:
    """Gives `original` the rows of recipe.strategy.

    Returns, by matrix, ‖change‖ / ‖before‖ over all rows, and how well sums of shared rows give the others.
    """
    moved: dict[str, float] = {}
    cosine: dict[str, float] = {}
    with torch.no_grad():
        weights = zip(MATRICES, vocabulary_weights(original), vocabulary_weights(trained), strict=False)
        for name, weight, trained_VD in weights:
            matrix = reverted_matrix(recipe, match, weight, trained_VD, batch_size=batch_size, device=weight.device)
            change = (matrix.rows_RD.float() - weight.float()).norm()
            moved[name] = float(change / weight.float().norm())
            if matrix.reconstruction_cosine is not None:
                cosine[name] = matrix.reconstruction_cosine
            weight.copy_(matrix.rows_RD)
    return {"rows_moved_relative": moved, "reconstruction_cosine": cosine}


def _take_trunk(original: PreTrainedModel, trained: PreTrainedModel) -> tuple[int, float, float]:
    """Copies every tensor but the embedding and the head from `trained`.

    Returns the number of values copied, the sum of the squares of their changes, and of their former squares.
    """
    vocabulary = {id(weight) for weight in vocabulary_weights(original)}
    sources = dict(trained.named_parameters())
    targets = dict(original.named_parameters())
    if sources.keys() != targets.keys():
        raise BadInputError(
            f"trained and original are not the same architecture: only one of them has "
            f"{sorted(sources.keys() ^ targets.keys())[0]}; give the model that the trained one was transplanted from"
        )
    num_values, square_moved, square_norm = 0, 0.0, 0.0
    with torch.no_grad():
        for name, target in targets.items():
            if id(target) in vocabulary:
                continue
            source = sources[name]
            if source.shape != target.shape:
                raise BadInputError(
                    f"{name} has shape {tuple(source.shape)} in the trained model and {tuple(target.shape)} in the "
                    f"original; give the model that the trained one was transplanted from"
                )
            num_values += target.numel()
            square_moved += float((source.float() - target.float()).square().sum())
            square_norm += float(target.float().square().sum())
            target.copy_(source)
    return num_values, square_moved, square_norm
