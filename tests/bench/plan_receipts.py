"""What plan, forecast, resume and garbage collection cost on a dump of 10^9 tokens that is all but finished.

Each runs in a process of its own:

python -m tests.bench.plan_receipts READ STORE
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import s3fs

from flows.costs import CostOptions, cost_of
from flows.dag import build
from flows.profiles import load_profile
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.garbage import find_garbage
from tasks.artifacts.manifest import ObjectRecord, ShardReceipt
from tasks.artifacts.store import Store, open_store
from tasks.runtime.declare import Step
from tasks.runtime.state import step_state
from tests.bench.memory import peak_bytes
from tests.bench.paths import ROOT
from tests.bench.records import Measured, Measurement
from tests.bench.rows_plan import READS
from tests.bench.wire import CountingProxy
from tests.seaweed import BUCKET, SeaweedServer

PROFILE, LABEL = "medius", "logits-llama"
TOKENS, ROWS_PER_SHARD, ROW_TOKENS = 10**9, 512, 1009
SHARDS = -(-TOKENS // (ROWS_PER_SHARD * ROW_TOKENS))
OBJECTS = 15
"""Of a shard: what `medius plan medius --cost --tokens 1e9` says."""
DISTANCE_SECONDS = 0.02
"""Added to each request to the server: object storage answers in 10 to 30 ms."""
WRITERS = 8


def _step() -> Step:
    return next(step for step in build(load_profile(PROFILE)) if step.label == LABEL)


def _write(store: Store) -> None:
    """Receipts as large as a real dump's, and objects of one byte."""
    artifact = Artifact(store, _step().directory)
    per_shard = ROWS_PER_SHARD * ROW_TOKENS

    def write(number: int) -> None:
        name = f"train-{number:05d}"
        objects = tuple(
            ObjectRecord(
                name=f"{name}/{part}",
                path=f"data/{name}-01234567/{part}",
                size=77 * per_shard // OBJECTS,
                sha256=f"{number * OBJECTS + part:064x}",
            )
            for part in range(OBJECTS)
        )
        for entry in objects:
            store.put(artifact.path(entry.path), b"0")
        metrics = {
            "tokens": per_shard,
            "rows": ROWS_PER_SHARD,
            "positions": per_shard,
            "entries": 47 * per_shard,
            "captured_histogram": [number * bin % 7919 for bin in range(1000)],
        }
        artifact.add_shard(
            ShardReceipt(
                shard=name, write_id=f"{number:032x}", objects=objects, metrics=metrics, inputs={"corpus": "c"}
            )
        )

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(write, range(SHARDS)))


def _receipts() -> Iterator[Measured]:
    with tempfile.TemporaryDirectory() as folder:
        uri = str(Path(folder, "store"))
        _write(open_store(uri))
        yield from _measured("disk", uri, {}, "on disk")
        server = SeaweedServer(Path(folder, "server"))
        server.start()
        try:
            with mock.patch.dict(os.environ, server.environment):
                s3fs.S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)
                uri = f"s3://{BUCKET}/bench"
                _write(open_store(uri))
            proxy = CountingProxy(server.ports[0], DISTANCE_SECONDS)
            variables = {**server.environment, "AWS_ENDPOINT_URL": proxy.endpoint}
            yield from _measured("s3", uri, variables, f"SeaweedFS, {1000 * DISTANCE_SECONDS:.0f} ms from the client")
            proxy.close()
        finally:
            server.kill()


def _measured(where: str, uri: str, variables: Mapping[str, str], said: str) -> Iterator[Measured]:
    for read in READS:
        command = [sys.executable, "-m", __name__, read, uri]
        start = time.perf_counter()
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True, check=True
        )
        seconds = time.perf_counter() - start
        found = json.loads(done.stdout.splitlines()[-1])
        conditions = (
            f"{SHARDS} receipts, {SHARDS * OBJECTS} objects, {said}; {found['said']}; wall time from the start of a "
            f"process to its end, {found['seconds']:.1f} s of it the call, {found['cpu']:.1f} s of CPU; its peak"
        )
        yield Measured(f"plan.receipts.{read}.{where}.seconds", seconds, conditions)
        yield Measured(f"plan.receipts.{read}.{where}.memory", found["peak"] / 1e6, conditions)


def _read(read: str, uri: str) -> str:
    """Does it once; what came out, in words."""
    loaded, store = load_profile(PROFILE), open_store(uri)
    step = _step()
    if read == "plan":
        return step_state(step, store).reason
    if read == "cost":
        cost = cost_of(build(loaded), store, loaded.parallel_stages, CostOptions.read(tokens=TOKENS))
        return next(entry.whole.measured for entry in cost.steps if entry.label == LABEL)
    if read == "resume":
        return f"{len(Artifact(store, step.directory).receipts())} receipts read"
    return f"{sum(1 for _ in find_garbage(store, [step.directory], 0.0))} folders of garbage"


def _child(read: str, uri: str) -> dict[str, float | str]:
    start, cpu = time.perf_counter(), time.process_time()
    said = _read(read, uri)
    took = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    return {**took, "peak": peak_bytes(), "said": said}


MEASUREMENTS = [Measurement("plan_receipts", _receipts, ("plan.receipts.*",))]

if __name__ == "__main__":
    print(json.dumps(_child(sys.argv[1], sys.argv[2])))
