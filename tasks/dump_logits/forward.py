"""The device's part of a dump: rows to truncated distributions, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from tasks.artifacts.errors import BadInputError
from tasks.dump_logits.batches import length_buckets, padded
from tasks.dump_logits.distributions import BatchResult, GoldSample, gold_rows
from tasks.dump_logits.sampling import draws_of
from tasks.dump_logits.stage import DumpLogitsRecipe, DumpLogitsRuntime
from tasks.dump_logits.teacher import Teacher
from tasks.dump_logits.truncate import Truncation
from tasks.logits.positions import Positions
from tasks.logits.rows import Row


class Forward:
    """Runs rows through a teacher and truncates what comes out.

    Above the teacher's own forward pass it holds the logits of `head_chunk_tokens` positions and one batch's results.
    """

    def __init__(self, teacher: Teacher, recipe: DumpLogitsRecipe, runtime: DumpLogitsRuntime) -> None:
        self.teacher = teacher
        self._recipe = recipe
        self._runtime = runtime
        self._truncate = Truncation(
            teacher.head,
            recipe.support,
            recipe.temperatures,
            teacher.transform if teacher.transforms_logits else None,
        )

    def gold(self, rows: Sequence[Row], count: int) -> list[GoldSample]:
        """Recomputes `count` rows spread over those that predict something, by the model's own forward pass."""
        return [
            GoldSample(place, *self.teacher.plain_gold_logprobs(rows[place].input_ids))
            for place in gold_rows(rows, count)
        ]

    def batches(self, rows: Sequence[Row]) -> Iterator[BatchResult]:
        """All rows of more than one token, in an order that suits the device."""
        for indices in length_buckets([len(row.input_ids) for row in rows], self._runtime.tokens_per_batch):
            yield self._batch(rows, indices)

    @torch.inference_mode()
    def _batch(self, rows: Sequence[Row], indices: Sequence[int]) -> BatchResult:
        batch = [rows[index] for index in indices]
        ids_BT, mask_BT = padded([row.input_ids for row in batch], self.teacher.device)
        hidden_BTD = self.teacher.hidden_states(ids_BT, mask_BT)
        # Position t predicts token t + 1: a row's last token has hidden states but nothing to predict.
        predicts_BT = mask_BT[:, 1:].bool()
        hidden_PD = hidden_BTD[:, :-1][predicts_BT]
        gold_P = ids_BT[:, 1:][predicts_BT]
        if not (finite_P := hidden_PD.isfinite().all(1)).all():
            self._refuse(batch, int(finite_P.int().argmin()))
        uniforms_PN = self._uniforms(batch)
        parts = []
        for first in range(0, len(hidden_PD), self._runtime.head_chunk_tokens):
            chunk = slice(first, first + self._runtime.head_chunk_tokens)
            part = self._truncate(
                hidden_PD[chunk], gold_P[chunk], None if uniforms_PN is None else uniforms_PN[chunk].to(ids_BT.device)
            )
            if not (finite_C := np.isfinite(part.topk_logprobs_PK[:, 0])).all():
                self._refuse(batch, first + int(finite_C.argmin()))
            parts.append(part)
        found = Positions.joined(parts)
        ends = np.cumsum([len(row.input_ids) - 1 for row in batch]).tolist()
        return BatchResult(
            tuple(indices),
            tuple(found.cut(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)),
            sum(len(row.input_ids) for row in batch),
            ids_BT.numel(),
        )

    def _uniforms(self, rows: Sequence[Row]) -> Tensor | None:
        """What a sampled support draws with at the rows' positions: a function of seed, row and position alone."""
        support = self._recipe.support
        if support.kind != "sampled":
            return None
        draws = [draws_of(support.seed, row.row_id, len(row.input_ids) - 1, support.num_draws) for row in rows]
        return torch.from_numpy(np.concatenate(draws))

    def _refuse(self, rows: Sequence[Row], position: int) -> NoReturn:
        ends = np.cumsum([len(row.input_ids) - 1 for row in rows])
        index = int(np.searchsorted(ends, position, side="right"))
        raise BadInputError(
            f"the teacher's output is not finite on row {rows[index].row_id}; check its weights "
            f"and recipe.teacher (dtype, attention, quantisation), or leave this document out of the corpus"
        )
