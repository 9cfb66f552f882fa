"""How packed documents become tensors, and how a model keeps them apart.

Rows are padded on the right. Under causal attention no real token sees what comes after it, so padding needs no
attention mask. Documents that share a row are told apart by their positions, which start at 0 at each: from them
transformers builds a block-diagonal causal mask where it is given neither an attention mask nor a cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tasks.artifacts.errors import BadInputError, CorruptArtifactError
from tasks.training.losses import Targets
from tasks.training.rows import teacher_of


@dataclass(frozen=True)
class Batch:
    """B rows of at most L tokens with one or more documents each, and N target positions among them.

    row_ids: of the documents. input_ids_BL: int64, padded with 0 on the right. position_ids_BL: int64, from 0 at each
    document and at the padding; None where each row is one document. positions_N: indices into the flattened B·L hidden
    states whose prediction is judged.
    """

    row_ids: tuple[str, ...]
    input_ids_BL: Tensor
    position_ids_BL: Tensor | None
    positions_N: Tensor
    targets: Targets

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(
            self.row_ids,
            self.input_ids_BL.to(device, non_blocking=True),
            None if self.position_ids_BL is None else self.position_ids_BL.to(device, non_blocking=True),
            self.positions_N.to(device, non_blocking=True),
            self.targets.to(device),
        )

    def without_targets(self) -> Batch:
        """The same documents with nothing to predict: what a process runs while others still have batches."""
        return Batch(self.row_ids, self.input_ids_BL, self.position_ids_BL, self.positions_N[:0], self.targets.head(0))


def collate(rows: Sequence[Sequence[Any]]) -> Batch:
    """Pads packed rows of documents and picks their targets.

    Position p of a document counts iff its loss_mask[p + 1], and its gold token is p + 1's: a document's last token
    predicts nothing, whatever follows it in the row. Where documents keep different numbers of entries, the missing
    ones are empty.

    Raises:
        CorruptArtifactError: a row's parts do not fit together, or a target keeps no teacher entry at all.
    """
    documents = [document for row in rows for document in row]
    width = max(sum(len(document.input_ids) for document in row) for row in rows)
    input_ids_BL = np.zeros((len(rows), width), np.int64)
    position_ids_BL = np.zeros((len(rows), width), np.int64)
    positions: list[np.ndarray] = []
    for place, row in enumerate(rows):
        start = 0
        for document in row:
            _check(document)
            stop = start + len(document.input_ids)
            input_ids_BL[place, start:stop] = document.input_ids
            position_ids_BL[place, start:stop] = np.arange(stop - start)
            positions.append(place * width + start + np.flatnonzero(document.loss_mask[1:]))
            start = stop
        position_ids_BL[place, start:] = np.arange(width - start)
    return Batch(
        tuple(document.row_id for document in documents),
        torch.from_numpy(input_ids_BL),
        torch.from_numpy(position_ids_BL) if len(documents) > len(rows) else None,
        torch.from_numpy(np.concatenate(positions)),
        _targets(documents),
    )


def _targets(documents: Sequence[Any]) -> Targets:
    kinds = {teacher_of(document) for document in documents}
    if len(kinds) > 1:
        raise BadInputError(
            f"rows {', '.join(document.row_id[:16] for document in documents[:8])} hold different kinds of teachers "
            f"({', '.join(sorted(kinds))}); train on stores of one kind"
        )
    judged = [np.flatnonzero(document.loss_mask[1:]) for document in documents]
    num_targets = sum(map(len, judged))
    gold_N = np.empty(num_targets, np.int64)
    kind = kinds.pop()
    num_kept = 0 if kind == "none" else max(document.topk_ids_PK.shape[1] for document in documents)
    topk_ids_NK = np.full((num_targets, num_kept), -1, np.int64)
    topk_logprobs_NK = np.full((num_targets, num_kept), -np.inf, np.float32)
    tail_logprob_N = np.zeros(num_targets, np.float32)
    draws_NK = np.zeros((num_targets, num_kept), np.float32) if kind == "draws" else None
    start = 0
    for document, places in zip(documents, judged, strict=True):
        part = slice(start, start + len(places))
        start += len(places)
        gold_N[part] = document.input_ids[places + 1]
        if kind == "none":
            continue
        kept = slice(document.topk_ids_PK.shape[1])
        topk_ids_NK[part, kept] = document.topk_ids_PK[places]
        topk_logprobs_NK[part, kept] = document.topk_logprobs_PK[places]
        tail_logprob_N[part] = document.tail_logprob_P[places]
        if draws_NK is not None:
            draws_NK[part, kept] = document.counts_PK[places]
        if (topk_ids_NK[part, :1] < 0).any():
            raise CorruptArtifactError(
                f"row {document.row_id} of the logit store keeps no entry at a target; dump it again"
            )
    return Targets(
        torch.from_numpy(gold_N),
        torch.from_numpy(topk_ids_NK),
        torch.from_numpy(topk_logprobs_NK),
        torch.from_numpy(tail_logprob_N),
        None if draws_NK is None else torch.from_numpy(draws_NK),
    )


def _check(document: Any) -> None:
    tokens = len(document.input_ids)
    if not tokens:
        raise CorruptArtifactError(f"row {document.row_id} has no tokens; write it again")
    expected = {"loss_mask": tokens}
    if teacher_of(document) != "none":
        expected |= dict.fromkeys(("topk_ids_PK", "topk_logprobs_PK", "tail_logprob_P"), tokens - 1)
    for name, length in expected.items():
        if len(getattr(document, name)) != length:
            raise CorruptArtifactError(
                f"row {document.row_id} has {tokens} tokens and {len(getattr(document, name))} of {name}; it should "
                f"have {length}: write it again"
            )


@torch.no_grad()
def check_packing(model: PreTrainedModel) -> None:
    """Proves on the model itself that documents of one row do not see each other, in several rows at once.

    A cache, a given attention mask, flash attention with more than one row, and layers that carry a state along the row
    (Mamba, linear attention) all let them, without a word.

    Raises:
        BadInputError: a document's hidden states change with the one that is packed before it, or are not those that it
            has alone.
    """
    vocab_size = model.config.get_text_config().vocab_size
    lengths = (3, 2, 3, 2, 4)
    ids = np.split(np.arange(sum(lengths)) % vocab_size, np.cumsum(lengths)[:-1])
    a, b, other_a, other_b, document = (
        SimpleNamespace(row_id="", input_ids=part, loss_mask=np.ones(len(part), np.uint8)) for part in ids
    )
    training = model.training
    model.eval()
    try:
        beside, beside_others, alone = (
            _hidden_of_last(model, rows, len(document.input_ids))
            for rows in (
                [[a, document], [b, document]],
                [[other_a, document], [other_b, document]],
                [[document]],
            )
        )
    except (TypeError, ValueError) as error:
        raise BadInputError(f"{model.config.model_type} cannot be told where documents begin ({error})") from error
    finally:
        model.train(training)
    if not alone.isfinite().all():
        # Broken weights: the training ends at its first loss, and names the rows.
        return
    # The first pair differs by nothing but the neighbours' tokens, so that any rounding is the same.
    tolerance = 1e-4 if model.dtype == torch.float32 else 5e-2
    for found, expected, share in ((beside, beside_others, 0.1), (beside, alone.expand_as(beside), 1.0)):
        change = float((found - expected).flatten(1).norm(dim=1).max() / alone.norm())
        if not change <= share * tolerance:
            raise BadInputError(
                f"{model.config.model_type} with {model.config._attn_implementation} attention does not keep the "
                f"documents of one row apart: beside another one, a document's hidden states change by {change:.1e} of "
                f"their size; use a model whose layers all take position_ids, with sdpa or eager attention"
            )


def check_rope(model: PreTrainedModel, longest: int) -> None:
    """Refuses rotary positions that follow the longest document of a forward pass.

    transformers (5.23, `dynamic_rope_update`) takes the frequencies of dynamic and longrope positions from the largest
    position of the pass once that is beyond a length, so that which documents share one would change the model.

    Args:
        longest: tokens of the longest packed row; its padding has positions, too.

    Raises:
        BadInputError: a row may be beyond that length.
    """
    config = model.config.get_text_config()
    parameters: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    # One block, or one for each type of layers.
    for block in (parameters, *parameters.values()):
        kind = block.get("rope_type") if isinstance(block, Mapping) else None
        if kind == "longrope":
            limit = block["original_max_position_embeddings"]
        elif kind is not None and "dynamic" in kind:
            limit = config.max_position_embeddings
        else:
            continue
        if longest > limit:
            raise BadInputError(
                f"{config.model_type} has rotary positions of the type {kind}, which follow the longest document of a "
                f"forward pass beyond {limit} tokens, and a row here may have {longest}: which documents share a pass "
                f"would change the model; cut documents and runtime.pack_tokens to {limit} tokens, or use another model"
            )


def _hidden_of_last(model: PreTrainedModel, rows: list[list[Any]], count: int) -> Tensor:
    """(rows, count, D) float32: what the last tokens of each row become."""
    batch = collate(rows).to(model.device)
    hidden_BLD = model.base_model(input_ids=batch.input_ids_BL, position_ids=batch.position_ids_BL, use_cache=False)[
        0
    ].float()
    ends = [sum(len(document.input_ids) for document in row) for row in rows]
    return torch.stack([hidden_BLD[place, end - count : end] for place, end in enumerate(ends)])
