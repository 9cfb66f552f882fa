"""Rows of a reverted model's embedding or head, by strategy.

Training in the foreign vocabulary changed the rows of shared tokens together with the trunk. What remains of a
reversion's cost is in the tokens that only the original has: nothing was trained there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.surgeon.plan import shared_tokens
from tasks.surgeon.pursuit import anchored_pursuit, cosines, most_used_anchors
from tasks.surgeon.special_tokens import MappedToken, duty_of, resolve_map
from tasks.surgeon.stage import RevertRecipe
from tasks.surgeon.vocabulary import read_vocabulary

_MADE_OF_SHARED = ("delta_transplant", "back_transplant")


@dataclass(frozen=True)
class TokenMatch:
    """The original's tokens beside the foreign vocabulary, int64. What is in neither list keeps its original rows:
    padding, and special tokens without a counterpart."""

    original_ids_S: Tensor
    """Shared tokens and special ones with a counterpart, ascending."""
    foreign_ids_S: Tensor
    """The same tokens' ids in the foreign vocabulary."""
    is_text_S: Tensor
    """bool: the shared tokens of text. Rows of text are made of these alone; special ones steer."""
    other_ids_N: Tensor
    """Tokens of text that only the original has, ascending."""


@dataclass(frozen=True)
class RevertedMatrix:
    """What became of an embedding or a head."""

    rows_RD: Tensor
    """In the original's dtype."""
    reconstruction_cosine: float | None
    """Mean cosine between the original rows of `other` tokens and the same sums over original rows; None if none were
    made of sums."""


def match_tokens(
    original: PreTrainedTokenizerFast, foreign: PreTrainedTokenizerFast, special_tokens: Mapping[str, str]
) -> TokenMatch:
    """Which of the original's tokens the foreign vocabulary has, by the rule of the transplant.

    `special_tokens` is the transplant's map, foreign → original. A foreign token of the same name stands for a special
    token of the original, unless the map gives it elsewhere; else one that took its rows: of several one of the same
    duty, then the one of the lowest id. What was mapped to a token of text stands for nothing.

    Raises:
        BadInputError: a tokenizer is not byte-level BPE, or the map names a token that its tokenizer does not have.
    """
    ours, theirs = read_vocabulary(original, "original"), read_vocabulary(foreign, "trained model")
    mapped = resolve_map(ours, theirs, special_tokens)
    foreign_of: dict[int, int] = {}
    # Of two foreign tokens with the same bytes the first is the one that texts have.
    for foreign_id, original_id in shared_tokens(ours, theirs, {token.donor_id for token in mapped}).items():
        foreign_of.setdefault(original_id, foreign_id)
    for token in sorted(mapped, key=_closeness):
        if token.student_id in ours.special:
            foreign_of.setdefault(token.student_id, token.donor_id)
    pairs = sorted(foreign_of.items())
    others = [token for token in ours.spelled if token not in foreign_of and token not in ours.special]
    return TokenMatch(
        original_ids_S=torch.tensor([original_id for original_id, _ in pairs], dtype=torch.int64),
        foreign_ids_S=torch.tensor([foreign_id for _, foreign_id in pairs], dtype=torch.int64),
        is_text_S=torch.tensor([original_id not in ours.special for original_id, _ in pairs], dtype=torch.bool),
        other_ids_N=torch.tensor(others, dtype=torch.int64),
    )


def _closeness(token: MappedToken) -> tuple[bool, bool, int]:
    """Smallest for the foreign token that stands for the original's; no order of the map is in it."""
    duty = duty_of(token.donor)
    return token.donor != token.student, duty is None or duty != duty_of(token.student), token.donor_id


def check_match(recipe: RevertRecipe, match: TokenMatch) -> None:
    """Refuses a strategy that the number of shared tokens does not allow.

    Raises:
        BadInputError: naming both numbers.
    """
    num_shared = len(match.original_ids_S)
    if recipe.strategy == "original_rows":
        return
    if num_shared == 0:
        raise BadInputError(
            f"the trained model and the original share no tokens, so that {recipe.strategy} has nothing to bring back; "
            f"set recipe.strategy to original_rows"
        )
    num_anchors = min(int(match.is_text_S.sum()), recipe.num_anchors)
    if recipe.strategy in _MADE_OF_SHARED and num_anchors < recipe.k:
        raise BadInputError(
            f"the trained model and the original share {num_anchors} tokens of text, and recipe.k asks for {recipe.k}; "
            f"lower k or set recipe.strategy to shared_trained"
        )


def reverted_matrix(
    recipe: RevertRecipe,
    match: TokenMatch,
    original_RD: Tensor,
    trained_VD: Tensor,
    *,
    batch_size: int | None,
    device: torch.device,
    after_batch: Callable[[], None] = lambda: None,
) -> RevertedMatrix:
    """The embedding or the head of the result, (R, D) like `original_RD`, which stays as it is.

    `trained_VD` is the same matrix of the trained model, rows by foreign id. Rows that the strategy does not name are
    the original's bit by bit; those of `delta_transplant` are too where the sum of changes is zero. `after_batch` is
    called after each batch of the pursuit.
    """
    result_RD = original_RD.clone()
    if recipe.strategy == "original_rows":
        return RevertedMatrix(result_RD, None)
    result_RD[match.original_ids_S] = trained_VD[match.foreign_ids_S].to(result_RD.dtype)
    if recipe.strategy == "shared_trained" or not len(match.other_ids_N):
        return RevertedMatrix(result_RD, None)
    original_ids_T, foreign_ids_T = match.original_ids_S[match.is_text_S], match.foreign_ids_S[match.is_text_S]
    at = torch.from_numpy(most_used_anchors(original_ids_T.numpy(), recipe.num_anchors))
    anchors_AD, trained_AD = original_RD[original_ids_T[at]].float(), trained_VD[foreign_ids_T[at]].float()
    targets_ND = original_RD[match.other_ids_N].float()
    sums = anchored_pursuit(
        targets_ND, anchors_AD, recipe.k, batch_size=batch_size, device=device, after_batch=after_batch
    )
    if recipe.strategy == "back_transplant":
        rows_ND = sums.apply(trained_AD)
    else:
        change_ND = sums.apply(trained_AD - anchors_AD)
        # Adding 0 would turn the sign of a negative zero.
        rows_ND = torch.where(change_ND == 0, targets_ND, targets_ND + change_ND)
    result_RD[match.other_ids_N] = rows_ND.to(result_RD.dtype)
    return RevertedMatrix(result_RD, float(cosines(sums.apply(anchors_AD), targets_ND).mean()))
