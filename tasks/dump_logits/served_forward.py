"""A served teacher's part of a dump: rows to truncated distributions, a document a request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tasks.dump_logits.answers import parse, positions, request_fields
from tasks.dump_logits.distributions import BatchResult, GoldSample, gold_rows
from tasks.dump_logits.teacher import gold_positions
from tasks.dump_logits.teacher_server import ServerClient, decoded
from tasks.logits.positions import Positions
from tasks.logits.rows import Row
from tasks.logits.schema import AdaptiveSupport, TopKSupport


class ServedForward:
    """Asks a server for what tasks/dump_logits/forward.py computes."""

    def __init__(
        self,
        server: ServerClient,
        support: TopKSupport | AdaptiveSupport,
        vocab_size: int,
        look: Callable[[], None],
    ) -> None:
        """`look` is called while answers are awaited; what it raises ends the requests."""
        self._server = server
        self._support = support
        self._vocab_size = vocab_size
        self._look = look

    def batches(self, rows: Sequence[Row]) -> Iterator[BatchResult]:
        """All rows of more than one token, as their answers come."""
        indices = [index for index, row in enumerate(rows) if len(row.input_ids) > 1]
        for index, found in self._of(rows, indices):
            num_tokens = len(rows[index].input_ids)
            yield BatchResult((index,), (found,), num_tokens, num_tokens)

    def gold(self, rows: Sequence[Row], count: int) -> list[GoldSample]:
        """Asks for `count` rows once more: by how much a server's answers differ is part of what it says."""
        samples = []
        for index, found in self._of(rows, gold_rows(rows, count)):
            where = gold_positions(len(found))
            samples.append(GoldSample(index, where, found.gold_logprob_P[where].astype(np.float64)))
        return samples

    def _of(self, rows: Sequence[Row], indices: Sequence[int]) -> Iterator[tuple[int, Positions]]:
        protocol = self._server.settings.protocol
        fields = request_fields(protocol, self._support.width)
        for place, body in self._server.answers(
            (rows[index].input_ids.tolist() for index in indices), fields, self._look
        ):
            index = indices[place]
            said = parse(decoded(body, f"row {rows[index].row_id}"), protocol, rows[index].input_ids)
            yield index, positions(said, self._support, self._vocab_size)
