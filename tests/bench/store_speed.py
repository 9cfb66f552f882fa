"""Tokens a core encodes and decodes in a second of its CPU time, all threads counted, through zarr and files."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tasks.artifacts.store import Store, open_store
from tasks.logits.positions import Positions
from tests.bench.records import Measured, Measurement
from tests.bench.stores import (
    Shard,
    data_said,
    long_shard_of_test,
    open_reader,
    shard_of_test,
    write_one,
    write_store,
)
from tests.bench.supports import TOP_64
from tests.bench.teachers import VOCABULARIES
from tests.bench.timing import median_cpu_seconds

DIRECTORY = "artifacts/dump_logits/bench"
SHARDS, COPIES = 2, 8
"""Shards of the store that is read, and how often each has the test split: 380,000 tokens, 200 MB decoded."""
ORDER_SEED = 0
ROWS_AT_ONCE = 16
REPETITIONS = 7


@dataclass(frozen=True)
class Documents:
    """What the rows of a shard are."""

    suffix: str
    """Of the rows' names."""
    said: str
    make: Callable[[str], Shard]


LONG = Documents(
    "",
    "documents of 4,096 tokens (the test split's positions laid end to end)",
    lambda vocabulary: long_shard_of_test(vocabulary, TOP_64, 4096),
)
SHORT = Documents(
    "_short",
    "the test split's own documents, 900 tokens on average",
    lambda vocabulary: shard_of_test(vocabulary, TOP_64),
)


def _encode(vocabulary: str) -> Iterator[Measured]:
    for documents in (LONG, SHORT):
        shard = documents.make(vocabulary)
        num_tokens = sum(len(row.input_ids) for row in shard.rows)
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "shard")

            def write(target: Path = target, shard: Shard = shard) -> None:
                shutil.rmtree(target, ignore_errors=True)
                write_one(target, vocabulary, TOP_64, shard)

            seconds = median_cpu_seconds(write, REPETITIONS)
        yield Measured(
            f"store.encode_tokens_per_core_second{documents.suffix}.{vocabulary}",
            num_tokens / seconds,
            f"one shard of {num_tokens} tokens to local files, 64 entries; {documents.said}; {data_said(vocabulary)}",
            REPETITIONS,
        )


def _decode(vocabulary: str) -> Iterator[Measured]:
    for documents in (LONG, SHORT):
        once = documents.make(vocabulary)
        shard = Shard([*once.rows] * COPIES, Positions.joined([once.positions] * COPIES))
        num_tokens = SHARDS * sum(len(row.input_ids) for row in shard.rows)
        with tempfile.TemporaryDirectory() as folder:
            store = open_store(str(Path(folder, "store")))
            write_store(store, DIRECTORY, Path(folder, "draft"), vocabulary, TOP_64, SHARDS, shard)
            in_order = list(range(SHARDS * len(shard.rows)))
            shuffled = random.Random(ORDER_SEED).sample(in_order, len(in_order))
            said = (
                f"{SHARDS} shards with {COPIES} times the same rows, all read once, in the page cache; {documents.said}"
            )
            for what, order in (("sequential", in_order), ("shuffled", shuffled)):
                seconds = median_cpu_seconds(partial(_read, store, order), REPETITIONS)
                yield Measured(
                    f"store.decode_{what}{documents.suffix}.{vocabulary}",
                    num_tokens / seconds,
                    f"{said}; a new reader each time, its opening counted; {data_said(vocabulary)}",
                    REPETITIONS,
                )


def _read(store: Store, order: list[int]) -> None:
    """As a training does: a few rows at a time."""
    rows = open_reader(store, DIRECTORY).rows("train")
    for start in range(0, len(order), ROWS_AT_ONCE):
        rows.many(order[start : start + ROWS_AT_ONCE])


MEASUREMENTS = [
    measurement
    for vocabulary in VOCABULARIES
    for measurement in (
        Measurement(
            f"store_speed_encode {vocabulary}",
            partial(_encode, vocabulary),
            (f"store.encode_tokens_per_core_second*.{vocabulary}",),
        ),
        Measurement(
            f"store_speed_decode {vocabulary}", partial(_decode, vocabulary), (f"store.decode_*.{vocabulary}",)
        ),
    )
]
