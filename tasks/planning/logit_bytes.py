"""Bytes that stored logits take.

An entry is one id and one level (tasks/logits/README.md). The ids are numbered by frequency and come in no useful
order, so they cost nearly their order-0 entropy, which grows with the vocabulary V; the levels add 2 to 2.7 bits. Bytes
a token:

    E · (1.38 − 0.04 · log2(49,152 / V)) + 12.5        E entries; the second term for V below 49,152 alone

fitted to stores of SmolLM2 (V = 49,152; E = 16 to 128: within 3 %) and of a miniature (V = 1,024; E = 16 to 77:
within 4 %); at V = 152k, E = 64 it is 3 % too little. The 12.5 are the token itself, its gold and tail, and what zstd
leaves. A drawn entry has a count of 0.2. On top come 150 a document (row id, sizes, place in the index), a shard's
descriptions of its arrays, and one prior, whose ids fit 2 V bytes compressed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tasks.artifacts.frozen import Frozen

ENTRY_BYTES, BYTES_PER_DOUBLING = 1.38, 0.04
REFERENCE_VOCABULARY = 49_152
TOKEN_BYTES = 12.5
DRAW_BYTES = 0.2
DOCUMENT_BYTES = 150.0
SHARD_BYTES = 4_500.0
OBJECT_BYTES = 32 * 2**20
"""Documents of a shard become one object each so many bytes, uncompressed and padded: tasks/logits/writer.py."""
MAX_DOCUMENTS_PER_OBJECT = 1024


class StoreSize(Frozen):
    """What a dump leaves in the store."""

    entries: float
    """A position's, on average."""
    bytes_per_token: float
    bytes: float
    shards: int
    objects: int


def entries_of(support: dict[str, Any], adaptive_entries: float) -> float:
    """Entries of a position, on average.

    Args:
        support: a recipe's `support` as JSON.
        adaptive_entries: of an adaptive support at probability 0.001.
    """
    if support["kind"] == "top_k":
        return float(support["num_kept"])
    if support["kind"] == "adaptive":
        if by_mass_alone(support):
            return float(support["max_kept"])
        # Measured on SmolLM2: the entries fall with about the 0.7th power of the probability. Of a mass besides, which
        # can only keep fewer, nothing is known.
        scale = (0.001 / support["min_probability"]) ** 0.7
        return min(float(support["max_kept"]), max(float(support["min_kept"]), adaptive_entries * scale))
    # Of n draws about n ** 0.7 differ: 15 to 17 of 50.
    return float(support["num_draws"]) ** 0.7


def by_mass_alone(support: dict[str, Any]) -> bool:
    """Whether a support keeps entries up to a mass whatever their probability. How many these are depends on how flat
    the teacher's distributions are, so they are counted as `max_kept`, the most there can be."""
    return support["kind"] == "adaptive" and not support["min_probability"]


def store_size(
    *,
    tokens: float,
    rows: Sequence[float],
    longest: float,
    rows_per_shard: int,
    documents_per_chunk: int,
    vocabulary: int,
    entries: float,
    draws: bool = False,
    value_bytes: float = 0.0,
    temperatures: int = 0,
) -> StoreSize:
    """Of a whole dump.

    Args:
        tokens: of all its splits together.
        rows: of each split.
        longest: tokens of the longest row.
        rows_per_shard, documents_per_chunk: of the recipe.
        vocabulary: V.
        entries: a position's, on average.
        draws: whether entries are draws, each with its count.
        value_bytes: of an entry's exact value beside its level: 2 for float16, 4 for float32.
        temperatures: others than 1.
    """
    entry = ENTRY_BYTES + BYTES_PER_DOUBLING * min(0.0, math.log2(vocabulary / REFERENCE_VOCABULARY))
    entry += (DRAW_BYTES if draws else 0.0) + value_bytes
    shards = blocks = 0
    # Uncompressed an entry is two bytes and a token eight; every row is padded to the longest.
    padded = max(1.0, longest * (2 * entries + 8))
    for count in rows:
        full, rest = divmod(math.ceil(count), rows_per_shard)
        shards += full + bool(rest)
        blocks += full * _blocks(rows_per_shard, documents_per_chunk, padded) + _blocks(
            rest, documents_per_chunk, padded
        )
    per_token = entries * entry + TOKEN_BYTES + 4 * temperatures
    documents = tokens * per_token + sum(rows) * DOCUMENT_BYTES
    size = documents + shards * SHARD_BYTES + 2 * vocabulary
    # A shard's group and four arrays are described by an object each, three arrays have one chunk. The prior is a group
    # with one array of one chunk; and there is the description of the whole.
    objects = shards * 8 + blocks + 3 + 1
    return StoreSize(
        entries=entries,
        bytes_per_token=size / tokens if tokens else 0.0,
        bytes=size,
        shards=shards,
        objects=objects,
    )


def _blocks(rows: int, documents_per_chunk: int, padded: float) -> int:
    """Objects with the documents of one shard, each of `padded` bytes: as tasks/logits/writer.py cuts them."""
    if not rows:
        return 0
    per_chunk = min(documents_per_chunk, rows)
    chunks = max(1, int(min(OBJECT_BYTES // padded, MAX_DOCUMENTS_PER_OBJECT, rows)) // per_chunk)
    return math.ceil(rows / (chunks * per_chunk))
