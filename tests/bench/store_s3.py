"""What a random document costs on S3: requests and bytes, counted on the wire between the reader and a SeaweedFS."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import s3fs

from tasks.artifacts.store import open_store
from tests.bench.real_logits import real_logits
from tests.bench.records import Measured, Measurement
from tests.bench.stores import data_said, open_reader, write_store
from tests.bench.supports import TOP_64
from tests.bench.wire import CountingProxy
from tests.seaweed import BUCKET, SeaweedServer

VOCABULARY = "152k"
DIRECTORY = "artifacts/dump_logits/bench"
SHARDS = 4
ORDER_SEED = 0


def _documents() -> Iterator[Measured]:
    with tempfile.TemporaryDirectory() as folder:
        server = SeaweedServer(Path(folder, "server"))
        server.start()
        try:
            yield from _measured(Path(folder), server)
        finally:
            server.kill()


def _measured(folder: Path, server: SeaweedServer) -> Iterator[Measured]:
    proxy = CountingProxy(server.ports[0])
    with mock.patch.dict(os.environ, {**server.environment, "AWS_ENDPOINT_URL": proxy.endpoint}):
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)
        store = open_store(f"s3://{BUCKET}/bench")
        manifest = write_store(store, DIRECTORY, folder / "draft", VOCABULARY, TOP_64, SHARDS)
        reader = open_reader(store, DIRECTORY)
        rows = reader.rows("train")
        order = list(range(len(rows)))
        random.Random(ORDER_SEED).shuffle(order)
        per_shard = len(rows) // SHARDS
        proxy.traffic.take()
        for shard in range(SHARDS):
            # Opens it: header, offsets, row ids.
            rows.num_tokens(shard * per_shard)
        opening, opening_bytes = proxy.traffic.take()
        first: list[int] = []
        later: list[int] = []
        received = 0
        seen: set[int] = set()
        for index in order:
            _ = rows[index]
            requests, num_bytes = proxy.traffic.take()
            (later if index // per_shard in seen else first).append(requests)
            seen.add(index // per_shard)
            received += num_bytes
    proxy.close()
    needed = sum(entry.size for entry in manifest.objects if "/c/" in entry.name and entry.name.startswith("train-"))
    said = (
        f"{len(rows)} documents of {SHARDS} shards in random order, each once, 64 entries; opening a shard took "
        f"{opening / SHARDS:.0f} requests and {opening_bytes / SHARDS / 1000:.1f} kB before; SeaweedFS on loopback; "
        f"{data_said(VOCABULARY)}"
    )
    yield Measured("store.s3_requests_per_document", max(first), said, len(first))
    yield Measured("store.s3_requests_index_cached", max(later), said, len(later))
    mean_tokens = real_logits(VOCABULARY, "test").num_tokens * SHARDS / len(rows)
    yield Measured(
        "store.s3_bytes_over_needed",
        received / needed,
        f"{received / len(rows) / 1000:.1f} kB a document of {mean_tokens:.0f} tokens on average; {said}",
        len(rows),
    )


MEASUREMENTS = [Measurement("store_s3", _documents, ("store.s3_*",))]
