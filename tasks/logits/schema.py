"""The records of a logit store: what its numbers mean, how its rows are cut into shards, and what is in each shard.

Words: a row is one document of T tokens, a position is one token's prediction (position p of a row predicts its token
p + 1, so a row has T − 1), a shard is the unit of resume.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from tasks.artifacts.frozen import Frozen

SCHEMA_FILE = "logits.json"
SPLITS = ("train", "heldout")
MAX_VOCAB_SIZE = 2**20
MIN_TEMPERATURE = 0.2
"""Below it log Σ p^(1/T) of a flat position leaves the range in which it is stored, ±64 nats."""

Split = Literal["train", "heldout"]
Values = Literal["warped", "float16", "float32"]


class TopKSupport(Frozen):
    """The K likeliest tokens. A fixed cost for every position; what lies outside is known by its mass alone."""

    kind: Literal["top_k"] = "top_k"
    num_kept: int = Field(64, ge=1, le=65535)

    @property
    def width(self) -> int:
        """Entries that a position has at most."""
        return self.num_kept


class AdaptiveSupport(Frozen):
    """The likeliest tokens down to a probability or up to a mass, whichever keeps fewer.

    Sure positions become cheap and open ones keep more than a fixed K of the same size would.
    """

    kind: Literal["adaptive"] = "adaptive"
    min_probability: float | None = Field(0.001, gt=0, lt=1)
    min_mass: float | None = Field(None, gt=0, lt=1)
    min_kept: int = Field(1, ge=1)
    max_kept: int = Field(128, ge=1, le=65535)

    @model_validator(mode="after")
    def _has_a_limit(self) -> AdaptiveSupport:
        if self.min_probability is None and self.min_mass is None:
            raise ValueError("adaptive support needs min_probability or min_mass; without either use top_k")
        if self.min_kept > self.max_kept:
            raise ValueError(f"min_kept {self.min_kept} is larger than max_kept {self.max_kept}")
        return self

    @property
    def width(self) -> int:
        """Entries that a position has at most."""
        return self.max_kept


class SampledSupport(Frozen):
    """Draws with replacement from the whole distribution: counts / draws estimate it without bias.

    The smallest, and the only one without a truncation error; each single position's gradient is noisy instead.
    """

    kind: Literal["sampled"] = "sampled"
    num_draws: int = Field(50, ge=1, le=65535)
    seed: int = Field(0, ge=0)

    @property
    def width(self) -> int:
        """Entries that a position has at most: no token was drawn twice."""
        return self.num_draws


Support: TypeAlias = Annotated[TopKSupport | AdaptiveSupport | SampledSupport, Field(discriminator="kind")]


class TeacherRecord(Frozen):
    """Whose distributions these are."""

    weights_digest: str
    """Digest of the model artifact: over the sha256 of all its files, or of the reference to a pinned hub revision."""
    repo: str | None = None
    revision: str | None = None
    dtype: str = ""
    attention: str = ""
    quantisation: str | None = None


class LogitFormat(Frozen):
    """What the numbers mean; the same in every shard of a store."""

    version: Literal[2] = 2
    support: Support = TopKSupport()
    values: Values = "warped"
    """warped: 255 levels (tasks/logits/grid.py); float16, float32: rounded to these and kept exactly."""
    vocab_size: int = Field(ge=1, le=MAX_VOCAB_SIZE)
    """The tokenizer's largest id + 1. Rows that a model has beyond it take no part in any number here."""
    temperatures: tuple[float, ...] = ()
    """Temperatures other than 1 at which normaliser and tail were taken over the full vocabulary."""
    teacher: TeacherRecord
    tokenizer_digest: str
    corpus_digest: str
    prior_digest: str
    """Of the order in which tokens are numbered (tasks/logits/prior.py)."""
    max_error_nats: float
    """Largest error of a stored log-probability above 1e-16, before a position is scaled to its mass."""
    documents_per_chunk: int = Field(1, ge=1)
    """Documents that are read together: 1 where any one may be asked for, more where they are short."""

    @property
    def width(self) -> int:
        """K: entries that a position has at most."""
        return self.support.width

    @property
    def teacher_digest(self) -> str:
        return self.teacher.weights_digest


class ShardHeader(LogitFormat):
    """The attributes of a shard's zarr group: with the prior it can be read without the rest of the store."""

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
