"""A shard whose positions all stand in memory, which no stage ever has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tasks.logits.positions import Positions
from tasks.logits.prior import Prior
from tasks.logits.rows import Row
from tasks.logits.schema import LogitFormat, ShardHeader, ShardPlan
from tasks.logits.writer import ShardWriter


def write_shard(
    directory: Path, plan: ShardPlan, form: LogitFormat, rows: Sequence[Row], positions: Positions, prior: Prior
) -> ShardHeader:
    """Writes a shard with T − 1 positions a row, one row after the other."""
    assert sum(len(row.input_ids) - 1 for row in rows) == len(positions)
    writer = ShardWriter(directory, plan, form, rows, prior)
    try:
        start = 0
        for index, row in enumerate(rows):
            stop = start + len(row.input_ids) - 1
            writer.add(index, positions.cut(start, stop))
            start = stop
        return writer.close()
    except ValueError:
        writer.discard()
        raise
