"""Time and memory a token from 10^5 to 10^7 stored tokens. Each size is written and read by a process of its own:

python -m tests.bench.store_flat write|read TOKENS FOLDER
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tasks.artifacts.store import open_store
from tests.bench.memory import peak_bytes, reset_peak, resident_bytes
from tests.bench.paths import ROOT
from tests.bench.records import Measured, Measurement
from tests.bench.stores import commit, data_said, open_reader, prior_of, shard_of_test, write_one
from tests.bench.supports import TOP_64

VOCABULARY = "49k"
DIRECTORY = "artifacts/dump_logits/bench"
COPIES = 2
"""The test split twice in each shard, about 50,000 tokens, whatever the size of the store."""
SMALL, LARGE = 10**5, 10**7
CACHE_BYTES = 16 * 2**20
"""Of decoded rows: both sizes fill it. The default's 256 MB would be full with the large store alone."""
REPETITIONS = 3
"""Of the small store, whose times are short; the large one is written and read once."""

Run = dict[str, float]
"""cpu (s), peak and before (bytes resident), tokens."""


def _flat() -> Iterator[Measured]:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "target")
        large = _written_and_read(LARGE, target)
        small = [_written_and_read(SMALL, target) for _ in range(REPETITIONS)]
    for action in ("write", "read"):
        once, often = large[action], [run[action] for run in small]
        tokens = (often[0]["tokens"], once["tokens"])
        cpu = (statistics.median(run["cpu"] for run in often) / tokens[0], once["cpu"] / tokens[1])
        peak = (statistics.median(run["peak"] for run in often), once["peak"])
        said = (
            f"{tokens[0]:.0f} and {tokens[1]:.0f} tokens in shards of one length, rows repeat; 64 entries; "
            f"{data_said(VOCABULARY)}"
        )
        yield Measured(
            f"store.flat_{action}_1e5_1e7",
            cpu[1] / cpu[0],
            f"{cpu[0] * 1e6:.2f} and {cpu[1] * 1e6:.2f} µs of CPU time a token; {said}",
            REPETITIONS,
        )
        yield Measured(
            f"store.flat_{action}_memory_1e5_1e7",
            peak[1] / peak[0],
            f"peak resident {peak[0] / 1e6:.0f} and {peak[1] / 1e6:.0f} MB, of these {once['before'] / 1e6:.0f} MB "
            f"before the first shard; {said}",
            REPETITIONS,
        )


def _written_and_read(size: int, target: Path) -> dict[str, Run]:
    result = {action: _child(action, size, target) for action in ("write", "read")}
    shutil.rmtree(target)
    return result


def _child(action: str, size: int, target: Path) -> Run:
    command = [sys.executable, "-m", "tests.bench.store_flat", action, str(size), str(target)]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, text=True, check=True)
    result: Run = json.loads(done.stdout.splitlines()[-1])
    return result


def _write(size: int, target: Path) -> Run:
    shard = shard_of_test(VOCABULARY, TOP_64, COPIES)
    draft = target / "draft"
    # The first shard pays for imports and tables once.
    write_one(target / "first", VOCABULARY, TOP_64, shard)
    num_shards = max(1, round(size / sum(len(row.input_ids) for row in shard.rows)))
    before = resident_bytes()
    reset_peak()
    started = time.process_time()
    headers = [
        write_one(draft / f"train-{number:05d}", VOCABULARY, TOP_64, shard, number) for number in range(num_shards)
    ]
    cpu, peak = time.process_time() - started, peak_bytes()
    commit(open_store(str(target / "store")), DIRECTORY, draft, headers, prior_of(VOCABULARY, TOP_64["kind"]))
    shutil.rmtree(draft)
    return {"cpu": cpu, "peak": peak, "before": before, "tokens": sum(header.num_tokens for header in headers)}


def _read(size: int, target: Path) -> Run:
    rows = open_reader(open_store(str(target / "store")), DIRECTORY, CACHE_BYTES).rows("train")
    _ = rows[0]
    before = resident_bytes()
    reset_peak()
    started = time.process_time()
    tokens = sum(len(rows[index].input_ids) for index in range(len(rows)))
    return {"cpu": time.process_time() - started, "peak": peak_bytes(), "before": before, "tokens": tokens}


MEASUREMENTS = [Measurement("store_flat", _flat, ("store.flat_*",))]

if __name__ == "__main__":
    print(json.dumps({"write": _write, "read": _read}[sys.argv[1]](int(sys.argv[2]), Path(sys.argv[3]))))
