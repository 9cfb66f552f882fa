"""Tokens a core encodes and decodes in a second of its CPU time, all threads counted, through zarr and files."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tasks.artifacts.store import Store, open_store
from tests.bench.real_logits import real_logits
from tests.bench.records import Measured, Measurement
from tests.bench.stores import data_said, open_reader, shard_of_test, write_one, write_store
from tests.bench.supports import TOP_64
from tests.bench.teachers import VOCABULARIES
from tests.bench.timing import median_cpu_seconds

DIRECTORY = "artifacts/dump_logits/bench"
SHARDS = 8
"""Shards of the store that is read, each the test split: about 190,000 tokens, 100 MB decoded."""
ORDER_SEED = 0
REPETITIONS = 7


def _encode(vocabulary: str) -> Iterator[Measured]:
    shard = shard_of_test(vocabulary, TOP_64)
    num_tokens = real_logits(vocabulary, "test").num_tokens
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "shard")

        def write() -> None:
            shutil.rmtree(target, ignore_errors=True)
            write_one(target, vocabulary, TOP_64, shard)

        seconds = median_cpu_seconds(write, REPETITIONS)
    yield Measured(
        f"store.encode_tokens_per_core_second.{vocabulary}",
        num_tokens / seconds,
        f"one shard of {num_tokens} tokens to local files, 64 entries; {data_said(vocabulary)}",
        REPETITIONS,
    )


def _decode(vocabulary: str) -> Iterator[Measured]:
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(str(Path(folder, "store")))
        write_store(store, DIRECTORY, Path(folder, "draft"), vocabulary, TOP_64, SHARDS)
        shuffled = list(range(len(open_reader(store, DIRECTORY).rows("train"))))
        in_order = list(shuffled)
        random.Random(ORDER_SEED).shuffle(shuffled)
        num_tokens = SHARDS * real_logits(vocabulary, "test").num_tokens
        said = f"{SHARDS} equal shards of the test split, each row read once, files in the page cache"
        for what, order in (("sequential", in_order), ("shuffled", shuffled)):
            seconds = median_cpu_seconds(partial(_read, store, order), REPETITIONS)
            yield Measured(
                f"store.decode_{what}.{vocabulary}",
                num_tokens / seconds,
                f"{said}; a new reader each time, its opening counted; {data_said(vocabulary)}",
                REPETITIONS,
            )


def _read(store: Store, order: list[int]) -> None:
    rows = open_reader(store, DIRECTORY).rows("train")
    for index in order:
        _ = rows[index]


MEASUREMENTS = [
    measurement
    for vocabulary in VOCABULARIES
    for measurement in (
        Measurement(
            f"store_speed_encode {vocabulary}",
            partial(_encode, vocabulary),
            (f"store.encode_tokens_per_core_second.{vocabulary}",),
        ),
        Measurement(
            f"store_speed_decode {vocabulary}", partial(_decode, vocabulary), (f"store.decode_*.{vocabulary}",)
        ),
    )
]
