"""Whether a chat model comes to the end of an answer: what a lost end token breaks first.

A model whose end of a turn has no trained row, or whose generation_config names another token, answers and goes on for
ever. Bits per byte do not see it, since no text has that token.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tasks.modeling.lost_stops import lost_stops
from tasks.modeling.stop_prompts import PROMPTS
from tasks.modeling.template_date import rendered
from tasks.modeling.tokenizer_files import real_vocab_size

PINNED_DAY = date(2024, 7, 26)
"""Printed by templates that print a date; the default of the profiles too."""


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """The ids that stop generation: those of generation_config, else the config's, else the tokenizer's."""
    generation = model.generation_config
    return first_ends(
        None if generation is None else generation.eos_token_id,
        model.config.get_text_config().eos_token_id,
        tokenizer.eos_token_id,
    )


def first_ends(*stated: Any) -> frozenset[int]:
    """The first eos_token_id, one or several, that is not None."""
    given = next((ids for ids in stated if ids is not None), ())
    return frozenset(given if isinstance(given, (list, tuple)) else [given])


def stopped_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_new_tokens: int = 64,
    day: date = PINNED_DAY,
) -> list[bool]:
    """Whether the greedy answer to each of PROMPTS meets an end token within `max_new_tokens`, in their order.

    The plain argmax: no repetition penalty or temperature of generation_config applies. Rows from the tokenizer's
    size on are padding and are never chosen. [] where the tokenizer has no chat template, since it cannot be asked.
    """
    if not tokenizer.chat_template:
        return []
    texts = [rendered(tokenizer, [{"role": "user", "content": prompt}], day) for prompt in PROMPTS]
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    return _stopped(model, encoded, end_tokens(model, tokenizer), real_vocab_size(tokenizer), max_new_tokens)


def compared_stops(before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
    """The metric that gates judge, of two models' stopped_prompts.

    `before` and `after` are the prompts stopped at, `lost_share` is the share of those before that are not stopped at
    after; None where that says nothing, for the reason in `not_judged`. A chat template that the model before had and
    the one after has not is `template_lost`, and with it every stop: nobody can ask that model.
    """
    template_lost = bool(before) and not after
    reason = None
    if not before:
        reason = "the model before has no chat template"
    elif not any(before) and not template_lost:
        reason = "the model before stopped at none of the prompts"
    share = None
    if template_lost:
        share = 1.0
    elif reason is None:
        share = lost_stops(before, after) / sum(before)
    return {
        "prompts": len(PROMPTS),
        "before": sum(before),
        "after": sum(after),
        "lost_share": share,
        "not_judged": reason,
        "template_lost": template_lost,
    }


@torch.inference_mode()
def _stopped(
    model: PreTrainedModel, encoded: Sequence[list[int]], ends: frozenset[int], num_real: int, max_new_tokens: int
) -> list[bool]:
    """All prompts at once, shorter ones filled up on the left, where the mask hides it."""
    longest = max(len(ids) for ids in encoded)
    input_ids_BT = torch.zeros(len(encoded), longest, dtype=torch.int64)
    mask_BT = torch.zeros_like(input_ids_BT)
    for row, ids in enumerate(encoded):
        input_ids_BT[row, longest - len(ids) :] = torch.tensor(ids)
        mask_BT[row, longest - len(ids) :] = 1
    input_ids_BT, mask_BT = input_ids_BT.to(model.device), mask_BT.to(model.device)
    positions_BT = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)
    ends_E = torch.tensor(sorted(ends), dtype=torch.int64, device=model.device)
    done_B = torch.zeros(len(encoded), dtype=torch.bool, device=model.device)
    cache = None
    for _ in range(max_new_tokens):
        output = model(
            input_ids=input_ids_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        next_B = output.logits[:, -1, :num_real].argmax(dim=-1)
        done_B |= torch.isin(next_B, ends_E)
        if bool(done_B.all()):
            break
        input_ids_BT = next_B[:, None]
        positions_BT = positions_BT[:, -1:] + 1
        mask_BT = torch.cat([mask_BT, torch.ones_like(input_ids_BT)], dim=1)
    stopped: list[bool] = done_B.tolist()
    return stopped
