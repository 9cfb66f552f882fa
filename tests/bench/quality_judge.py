"""What a model is worth on held-out rows: bits and answers of each document, all from one forward pass of each row.

Bits per byte = the sum over the rows of −log2 p(targets) by the sum of the targets' UTF-8 bytes, exactly as the rows
were made for training: a row's first token is context.

Letters: T tokens of a row, V vocabulary, I items of a row.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from tasks.logits.rows import Row
from tasks.modeling.model_files import load_causal_lm
from tests.bench.quality_words import Item


@dataclass(frozen=True)
class JudgedDocument:
    """All rows of one document together."""

    document: str
    bits: float
    num_bytes: int
    correct: int
    num_items: int


_DOCUMENTS = TypeAdapter(list[JudgedDocument])


def judged_once(file: Path, directory: Path, rows: Sequence[Row], items: Sequence[Item]) -> list[JudgedDocument]:
    """`judge` of the model in `directory`, kept in `file`."""
    if not file.is_file():
        documents = judge(load_causal_lm(directory, dtype=torch.float32), rows, items)
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f"{file.name}.draft")
        draft.write_bytes(_DOCUMENTS.dump_json(documents, indent=1))
        draft.rename(file)
    return _DOCUMENTS.validate_json(file.read_bytes())


@torch.inference_mode()
def judge(model: PreTrainedModel, rows: Sequence[Row], items: Sequence[Item]) -> list[JudgedDocument]:
    """Every document in the order of its first row."""
    items_of = defaultdict(list)
    for item in items:
        items_of[item.row].append(item)
    totals: dict[str, list[float]] = {row.document: [0.0, 0, 0, 0] for row in rows}
    for index, row in enumerate(rows):
        ids_T = torch.from_numpy(row.input_ids).long()
        logits_TV = model(input_ids=ids_T[None], use_cache=False).logits[0]
        nats_T = cross_entropy(logits_TV[:-1].float(), ids_T[1:], reduction="none").double()
        mask_T = torch.from_numpy(row.loss_mask[1:]).bool()
        own = items_of[index]
        correct = 0
        if own:
            choices_IC = torch.tensor([item.choices for item in own])
            positions_I = torch.tensor([item.position - 1 for item in own])
            scores_IC = logits_TV[positions_I].gather(1, choices_IC)
            correct = int((scores_IC[:, 0] > scores_IC[:, 1:].amax(1)).sum())
        values = (float(nats_T[mask_T].sum()) / math.log(2), row.num_bytes, correct, len(own))
        totals[row.document] = [total + value for total, value in zip(totals[row.document], values, strict=True)]
    return [
        JudgedDocument(document, bits, int(num_bytes), int(correct), int(count))
        for document, (bits, num_bytes, correct, count) in totals.items()
    ]
