"""What plan, forecast, resume and garbage collection cost on a dump of 10^9 tokens that is all but finished.

Each runs in a process of its own:

python -m tests.bench.plan_receipts READ STORE
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from flows.costs import CostOptions, cost_of
from flows.dag import build
from flows.profiles import load_profile
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.garbage import find_garbage
from tasks.artifacts.manifest import ObjectRecord, ShardReceipt
from tasks.artifacts.store import open_store
from tasks.runtime.declare import Step
from tasks.runtime.state import step_state
from tests.bench.memory import peak_bytes
from tests.bench.paths import ROOT
from tests.bench.records import Measured, Measurement
from tests.bench.rows_plan import READS

PROFILE, LABEL = "medius", "logits-llama"
TOKENS, ROWS_PER_SHARD, ROW_TOKENS = 10**9, 512, 1009
SHARDS = -(-TOKENS // (ROWS_PER_SHARD * ROW_TOKENS))
OBJECTS = 15
"""Of a shard: what `medius plan medius --cost --tokens 1e9` says."""


def _step() -> Step:
    return next(step for step in build(load_profile(PROFILE)) if step.label == LABEL)


def _write(store: Path) -> None:
    """Receipts as large as a real dump's, and no data behind them."""
    artifact = Artifact(open_store(str(store)), _step().directory)
    per_shard = ROWS_PER_SHARD * ROW_TOKENS
    for number in range(SHARDS):
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


def _receipts() -> Iterator[Measured]:
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.json"))
        for read in READS:
            command = [sys.executable, "-m", __name__, read, folder]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            conditions = (
                f"{SHARDS} receipts, {size / 1e6:.0f} MB, on disk; {found['said']}; CPU time of the call alone, "
                f"peak of the whole process"
            )
            yield Measured(f"plan.receipts.{read}.seconds", found["seconds"], conditions)
            yield Measured(f"plan.receipts.{read}.memory", found["peak"] / 1e6, conditions)


def _read(read: str, folder: str) -> str:
    """Does it once; what came out, in words."""
    loaded, store = load_profile(PROFILE), open_store(folder)
    step = _step()
    if read == "plan":
        return step_state(step, store).reason
    if read == "cost":
        cost = cost_of(build(loaded), store, loaded.parallel_stages, CostOptions.read(tokens=TOKENS))
        return next(entry.whole.measured for entry in cost.steps if entry.label == LABEL)
    if read == "resume":
        return f"{len(Artifact(store, step.directory).receipts())} receipts read"
    return f"{sum(1 for _ in find_garbage(store, [step.directory], 0.0))} folders of garbage"


def _child(read: str, folder: str) -> dict[str, float | str]:
    start = time.process_time()
    said = _read(read, folder)
    return {"seconds": time.process_time() - start, "peak": peak_bytes(), "said": said}


MEASUREMENTS = [Measurement("plan_receipts", _receipts, ("plan.receipts.*",))]

if __name__ == "__main__":
    print(json.dumps(_child(sys.argv[1], sys.argv[2])))
