"""Orthogonal matching pursuit over the most used shared tokens, against mergekit's over all of them.

Targets are rows of SmolLM2 whose tokens Qwen2.5 does not have, a sample spread evenly over their ids: the tokens that a
model in Qwen2.5's vocabulary needs rows for when it comes to SmolLM2's.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from mergekit.tokensurgeon import batch_omp
from torch import Tensor

from tasks.modeling.tokenizer_files import load_tokenizer, real_vocab_size
from tasks.surgeon.combinations import Combinations
from tasks.surgeon.plan import plan_transplant
from tasks.surgeon.pursuit import anchored_pursuit, cosines, most_used_anchors
from tasks.surgeon.stage import TransplantRecipe
from tasks.surgeon.stored_rows import stored_vocabulary
from tests.bench.records import Measured, Measurement
from tests.bench.swap_steps import directory_of, make, smollm2, tokenizer
from tests.bench.timing import paired

SAMPLE = 256
REPETITIONS = 3


def _pursuit() -> Iterator[Measured]:
    recipe = TransplantRecipe(special_tokens={})
    targets_ND, shared_SD, anchors_AD = _rows(recipe)
    plain = _plain(targets_ND, shared_SD, recipe.k)
    anchored = anchored_pursuit(targets_ND, anchors_AD, recipe.k)
    cosine_plain = float(cosines(plain.apply(shared_SD), targets_ND).mean())
    cosine_anchored = float(cosines(anchored.apply(anchors_AD), targets_ND).mean())
    said = (
        f"k {recipe.k}, {len(anchors_AD)} anchors against all {len(shared_SD)} shared tokens, width "
        f"{targets_ND.shape[1]}, SmolLM2's rows of {{}} tokens that Qwen2.5 lacks"
    )
    yield Measured(
        "surgery.pursuit.cosine_over_plain",
        cosine_anchored / cosine_plain,
        f"{cosine_anchored:.4f} over {cosine_plain:.4f}; {said.format(len(targets_ND))}",
    )
    pairs = paired(
        lambda: _plain(targets_ND, shared_SD, recipe.k),
        lambda: anchored_pursuit(targets_ND, anchors_AD, recipe.k),
        REPETITIONS,
        warm_up=0,
    )
    yield Measured(
        "surgery.pursuit.speedup",
        pairs.ratio,
        f"{pairs.spread}; with the products of all anchors with each other, once a matrix, which more tokens would "
        f"share; {said.format(len(targets_ND))}",
        REPETITIONS,
    )


def _rows(recipe: TransplantRecipe) -> tuple[Tensor, Tensor, Tensor]:
    """The sample (N, D), the rows of all shared tokens (S, D) and those of the anchors (A, D)."""
    directory = directory_of(make(smollm2()))
    student, donor = load_tokenizer(directory_of(make(tokenizer("qwen")))), load_tokenizer(directory)
    plan = plan_transplant(student, donor, recipe, real_vocab_size(donor))
    stored = stored_vocabulary(directory)
    ids_N = plan.approximated_donor_ids
    # From the middle of equal parts, since the first ids are the most frequent tokens.
    sample_N = ids_N[(torch.arange(SAMPLE).numpy() * 2 + 1) * len(ids_N) // (2 * SAMPLE)]
    # As the stage chooses them: no row of text is made of special tokens. mergekit takes them too.
    text_ids_T = plan.shared_donor_ids_S[plan.is_text_S]
    anchor_ids_A = text_ids_T[most_used_anchors(text_ids_T, recipe.num_anchors)]
    wanted = (sample_N, plan.shared_donor_ids_S, anchor_ids_A)
    targets_ND, shared_SD, anchors_AD = (stored.rows(0, torch.from_numpy(ids)).float() for ids in wanted)
    return targets_ND, shared_SD, anchors_AD


def _plain(targets_ND: Tensor, shared_SD: Tensor, k: int) -> Combinations:
    return Combinations(*batch_omp(targets_ND, shared_SD, k))


MEASUREMENTS = [
    Measurement("surgery_pursuit", _pursuit, ("surgery.pursuit.cosine_over_plain", "surgery.pursuit.speedup"))
]
