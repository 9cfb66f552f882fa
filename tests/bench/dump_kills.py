"""A dump killed with -9 at random moments of its work, again and again, against one that nobody disturbed.

The seed is printed and stands in the rows' conditions; MEDIUS_KILL_SEED repeats it.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from tasks.artifacts.artifact import Artifact
from tests.bench.dumping import corpus_rows, dump_inputs, recipe_of, runtime_of
from tests.bench.jobs import JobInputs
from tests.bench.paths import ROOT
from tests.bench.records import Measured, Measurement

TEACHER = "llama-teacher"
KILLS = 20
NUM_TOKENS = 40_000
MAX_TOKENS = 128
ROWS_PER_SHARD = 16
MAX_LAUNCHES = 4 * KILLS
POLL_SECONDS = 0.01


@dataclass
class Found:
    """What the finished stores and the launches that made them have shown."""

    kills: int = 0
    launches: int = 0
    stores: int = 0
    differing: int = 0
    lost: int = 0
    twice: int = 0


class Launch:
    """One worker process on one artifact."""

    def __init__(self, inputs: JobInputs, artifact: Artifact) -> None:
        self.spec = inputs.spec(
            recipe_of("fp32", prior_tokens=4096, rows_per_shard=ROWS_PER_SHARD),
            runtime_of(tokens_per_batch=1024),
            artifact,
        )
        file = inputs.folder / f"{self.spec.attempt}.json"
        file.write_text(self.spec.model_dump_json())
        self._log = inputs.folder / f"{self.spec.attempt}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tasks.dump_logits.worker", "--spec", str(file)],
                cwd=ROOT,
                env=dict(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def working(self) -> float:
        """Waits for its first event, and returns when that was (time.monotonic)."""
        events = Path(self.spec.scratch, "events.jsonl")
        while not (events.is_file() and events.stat().st_size) and self.process.poll() is None:
            time.sleep(POLL_SECONDS)
        return time.monotonic()

    def ended(self, within: float | None = None) -> bool:
        """Whether it ends by itself within this many seconds; raises if it ends with an error."""
        try:
            code = self.process.wait(within)
        except subprocess.TimeoutExpired:
            return False
        if code:
            said = self._log.read_text(errors="replace").split("\n")
            raise RuntimeError(f"the dump ended with {code}: {' '.join(line.strip() for line in said[-4:])}")
        return True

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def _kills() -> Iterator[Measured]:
    seed = int(os.environ.get("MEDIUS_KILL_SEED") or random.SystemRandom().randrange(2**32))
    print(f"MEDIUS_KILL_SEED={seed}", flush=True)
    chance = random.Random(seed)
    teacher = ROOT / "tasks" / "models" / "miniatures" / TEACHER
    rows = corpus_rows(teacher, NUM_TOKENS, MAX_TOKENS)
    row_ids = {row.row_id for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        inputs = dump_inputs(Path(folder), teacher, {"train": rows})
        undisturbed = Launch(inputs, inputs.artifact("undisturbed"))
        started = undisturbed.working()
        undisturbed.ended()
        seconds = time.monotonic() - started
        expected = _objects(inputs.artifact("undisturbed"))
        found = Found()
        while found.kills < KILLS and found.launches < MAX_LAUNCHES:
            name = f"killed-{found.stores}"
            artifact = inputs.artifact(name)
            while not _launch(inputs, artifact, chance.uniform(0, seconds) if found.kills < KILLS else None, found):
                pass
            found.stores += 1
            objects = _objects(artifact)
            found.differing += len(set(expected.items()) ^ set(objects.items()))
            found.lost += len(row_ids - _row_ids(artifact))
    said = (
        f"MEDIUS_KILL_SEED={seed}: {found.kills} kills in {found.launches} launches on {found.stores} stores, each "
        f"at a moment within {seconds:.1f} s of its first event; {len(rows)} rows, {len(expected)} objects, shards of "
        f"{ROWS_PER_SHARD} rows; the miniature {TEACHER}"
    )
    yield Measured("dump.kills", found.kills, said, found.launches)
    yield Measured("dump.kills_bit_identical", found.differing, said, found.stores)
    yield Measured("dump.kills_rows_lost", found.lost, said, found.stores)
    yield Measured("dump.kills_shards_written_twice", found.twice, said, found.launches)


def _launch(inputs: JobInputs, artifact: Artifact, after: float | None, found: Found) -> bool:
    """Whether the artifact is finished. Kills the launch `after` seconds of work, unless it has ended by then."""
    receipts = {entry.path: artifact.store.get(entry.path) for entry in artifact.store.list(artifact.path("shards"))}
    launch = Launch(inputs, artifact)
    found.launches += 1
    launch.working()
    finished = launch.ended(after)
    if not finished:
        launch.kill()
        found.kills += 1
    for path, content in receipts.items():
        shard = Path(path).stem
        written = any(artifact.store.list(artifact.path(f"data/{shard}-{launch.spec.attempt}")))
        found.twice += written or artifact.store.get(path) != content
    return finished


def _objects(artifact: Artifact) -> dict[str, str]:
    """Checksum of each object of a finished artifact by its name."""
    return {entry.name: entry.sha256 for entry in artifact.covered_objects(artifact.receipts())}


def _row_ids(artifact: Artifact) -> set[str]:
    """As the shards' own arrays have them."""
    found = set()
    for entry in artifact.covered_objects(artifact.receipts()):
        shard, _, rest = entry.name.partition("/")
        if rest == "zarr.json" and shard.startswith("train-"):
            group = zarr.open_group(artifact.store.zarr_store(artifact.path(entry.path.rpartition("/")[0])), mode="r")
            found |= {bytes(row_id).hex() for row_id in np.asarray(group["row_id"][:])}  # type: ignore[index]
    return found


MEASUREMENTS = [Measurement("dump_kills", _kills, ("dump.kills", "dump.kills_*"))]
