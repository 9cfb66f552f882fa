"""The records of a logit store: what its numbers mean, how its rows are cut into shards, and what is in each shard.

Words: a row is one document of T tokens, a position is one token's prediction (position p of a row predicts its token
p + 1, so a row has T − 1), a shard is the unit of resume.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from tasks.artifacts.frozen import Frozen

SCHEMA_FILE = "logits.json"
SPLITS = ("train", "heldout")

Split = Literal["train", "heldout"]
ValueDtype = Literal["float16", "float32"]


class LogitFormat(Frozen):
    """What the numbers mean; the same in every shard of a store."""

    version: Literal[1] = 1
    codec: Literal["plain"] = "plain"
    value_dtype: ValueDtype
    vocab_size: int = Field(ge=1)
    """The tokenizer's largest id + 1. Rows that a model has beyond it take no part in any number here."""
    num_kept: int = Field(ge=1)
    temperatures: tuple[float, ...] = ()
    """Temperatures other than 1 at which normaliser and tail were taken over the full vocabulary."""
    tokenizer_digest: str
    teacher_digest: str
    corpus_digest: str


class ShardHeader(LogitFormat):
    """The attributes of a shard's zarr group: it can be read without the rest of the store."""

    shard: str
    split: Split
    first_row: int = Field(ge=0)
    """Place of its first row in the corpus split."""
    num_rows: int = Field(ge=1)
    num_tokens: int
    num_targets: int


class ShardEntry(Frozen):
    """A shard in the store's list."""

    name: str
    split: Split
    first_row: int
    num_rows: int
    num_tokens: int
    num_targets: int


class LogitSchema(LogitFormat):
    """logits.json."""

    rows_per_shard: int = Field(ge=1)
    num_rows: dict[Split, int]
    """Rows of each dumped split in the corpus."""
    shards: tuple[ShardEntry, ...]


class ShardPlan(Frozen):
    """A shard before it exists."""

    name: str
    split: Split
    first_row: int
    num_rows: int


def plan_shards(num_rows: Mapping[Split, int], rows_per_shard: int) -> tuple[ShardPlan, ...]:
    """Cuts each split's rows, in corpus order, into shards of `rows_per_shard`; a split's last may be short."""
    return tuple(
        ShardPlan(
            name=f"{split}-{first_row // rows_per_shard:05d}",
            split=split,
            first_row=first_row,
            num_rows=min(rows_per_shard, num_rows[split] - first_row),
        )
        for split in sorted(num_rows, key=SPLITS.index)
        for first_row in range(0, num_rows[split], rows_per_shard)
    )
