"""Bits per byte: how well a model predicts raw text, comparable between tokenizers.

    bits per byte = sum over documents of -log2 p(all tokens of the text | start token) / sum of their UTF-8 bytes

Every model encodes the same raw text with its own tokenizer, without special tokens, after the token that its documents
begin with (document_start.py). A document of more than C tokens is cut into windows of C predictions that do not
overlap; each window starts from the last token of the one before, so every token is predicted exactly once and every
byte counts exactly once. Probabilities are normalised over the tokenizer's ids: rows that only pad the embedding matrix
take no part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError
from tasks.modeling.document_start import start_token
from tasks.modeling.tokenizer_files import real_vocab_size


class Text(Protocol):
    """A document or a piece of one, such as a row of a corpus."""

    @property
    def document(self) -> str:
        """Names the document that it is of."""

    @property
    def text(self) -> str:
        """What is measured."""


class _Window(NamedTuple):
    row: int
    ids: list[int]
    """T+1 ids for T predictions: the first is only context."""


@dataclass(frozen=True)
class DocumentBits:
    """What one document costs, all its rows together."""

    document: str
    """As its rows name it; in a corpus a hex sha256."""
    bits: float
    num_bytes: int


def context_tokens(model: PreTrainedModel, window_tokens: int) -> int:
    """Predictions a window: the recipe's, or the model's context where that is shorter."""
    return min(window_tokens, int(model.config.get_text_config().max_position_embeddings))


def document_bits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Text],
    *,
    window_tokens: int,
    batch_size: int,
    after_batch: Callable[[], None],
) -> list[DocumentBits]:
    """Bits and bytes of each document; `after_batch` is called after each forward pass.

    A document of several rows is measured row by row, each after the start token, and counted once: in the order of
    the documents' first rows.

    Raises:
        BadInputError: the tokenizer cannot express a document.
    """
    start = start_token(model, tokenizer)
    size = context_tokens(model, window_tokens)
    num_tokens = real_vocab_size(tokenizer)
    windows: list[_Window] = []
    for index, row in enumerate(rows):
        ids = tokenizer.encode(row.text, add_special_tokens=False, split_special_tokens=True)
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
            raise BadInputError(
                f"the tokenizer has no tokens for a part of the held-out document {row.document[:16]}, so that its "
                f"bits cannot be counted; take the document out of the corpus or leave this model out"
            )
        ids = [start, *ids]
        windows += [_Window(index, ids[at : at + size + 1]) for at in range(0, len(ids) - 1, size)]

    order = sorted(range(len(windows)), key=lambda index: -len(windows[index].ids))
    window_bits = [0.0] * len(windows)
    for at in range(0, len(order), batch_size):
        batch = order[at : at + batch_size]
        for index, bits in zip(batch, _batch_bits(model, [windows[i].ids for i in batch], num_tokens), strict=True):
            window_bits[index] = bits
        after_batch()

    totals = dict.fromkeys((row.document for row in rows), 0.0)
    sizes = dict.fromkeys(totals, 0)
    for window, bits in zip(windows, window_bits, strict=True):
        totals[rows[window.row].document] += bits
    for row in rows:
        sizes[row.document] += len(row.text.encode())
    return [DocumentBits(document, bits, sizes[document]) for document, bits in totals.items()]


@torch.inference_mode()
def _batch_bits(model: PreTrainedModel, windows: list[list[int]], num_tokens: int) -> list[float]:
    longest = max(len(ids) for ids in windows) - 1
    # Padding on the right is never seen by a causal model's earlier positions, so it needs no mask.
    input_ids_BT = torch.zeros(len(windows), longest, dtype=torch.long)
    for row, ids in enumerate(windows):
        input_ids_BT[row, : len(ids) - 1] = torch.tensor(ids[:-1])
    logits_BTV = model(input_ids=input_ids_BT.to(model.device), use_cache=False).logits
    bits = []
    for logits_TV, ids in zip(logits_BTV, windows, strict=True):
        targets_T = torch.tensor(ids[1:], device=logits_TV.device)
        # One row at a time in fp32: a batch of 2048 x 152k would be gigabytes more.
        nats_T = cross_entropy(logits_TV[: len(targets_T), :num_tokens].float(), targets_T, reduction="none")
        bits.append(float(nats_T.double().sum()) / math.log(2))
    return bits
