"""What a model makes of given tokens: the bits of each, and the token that it holds likeliest in its place.

Where every token of an answer is the likeliest one, greedy decoding from the same context would write that answer: it
is read off one forward pass, at a fraction of what writing costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Asked:
    """T token ids, of which those at `targets` (positions from 1 on, rising) are asked for."""

    ids: Sequence[int]
    targets: Sequence[int]


@dataclass(frozen=True)
class Predicted:
    """Of the P targets of one row, in their order."""

    bits: list[float]
    likeliest: list[int]


@torch.inference_mode()
def predict(
    model: PreTrainedModel,
    rows: Sequence[Asked],
    *,
    num_tokens: int,
    batch_size: int,
    after_batch: Callable[[], None] = lambda: None,
) -> list[Predicted]:
    """All targets of all rows; `after_batch` is called after each forward pass.

    Args:
        num_tokens: ids of the tokenizer; rows of the model beyond them are padding, take no probability and are never
            the likeliest.
    """
    found = []
    for at in range(0, len(rows), batch_size):
        batch = rows[at : at + batch_size]
        longest = max(len(row.ids) for row in batch)
        # Padding on the right is never seen by a causal model's earlier positions, so it needs no mask.
        input_ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
        for index, row in enumerate(batch):
            input_ids_BT[index, : len(row.ids)] = torch.tensor(row.ids)
        logits_BTV = model(input_ids=input_ids_BT.to(model.device), use_cache=False).logits
        for index, row in enumerate(batch):
            targets_P = torch.tensor(row.targets, device=model.device)
            logits_PV = logits_BTV[index, targets_P - 1, :num_tokens].float()
            gold_P = input_ids_BT[index, targets_P.cpu()].to(model.device)
            nats_P = cross_entropy(logits_PV, gold_P, reduction="none")
            found.append(Predicted((nats_P.double() / math.log(2)).tolist(), logits_PV.argmax(dim=-1).tolist()))
        after_batch()
    return found
