"""Dump workers that start in milliseconds: forks of a process that has imported everything and computed nothing.

A worker of its own takes seconds of imports, so a test that kills twenty would measure imports. What runs in the fork
is the real worker's main; it is killed and resumed as a launch of its own is.
"""

from __future__ import annotations

import importlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.store import open_store
from tasks.worker.spec import WorkerSpec

ROOT = Path(__file__).parents[2]
WAITS = "waits for other workers"
"""What a worker prints when it does."""


class ForkedWorkers:
    """`with ForkedWorkers() as workers:` then `workers.start(spec)`, any number at a time."""

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.dump_logits.forked_workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)},
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(30)

    def start(self, spec: WorkerSpec) -> Worker:
        """Starts a worker; what it prints goes into worker.log in its scratch folder."""
        scratch = Path(spec.scratch)
        scratch.mkdir(parents=True)
        file = scratch / "spec.json"
        file.write_text(spec.model_dump_json())
        (scratch / "worker.log").touch()
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(f"{file}\n")
        self._server.stdin.flush()
        return Worker(int(self._server.stdout.readline()), scratch)


@dataclass(frozen=True)
class Worker:
    process: int
    scratch: Path

    def kill(self) -> None:
        """kill -9."""
        os.kill(self.process, 9)

    def wait(self, seconds: float) -> int:
        """Its exit code, negative if a signal ended it."""
        file = self.scratch / "code"
        deadline = time.monotonic() + seconds
        while not file.exists():
            assert time.monotonic() < deadline, f"not ended within {seconds} s:\n{self.log()}"
            time.sleep(0.005)
        return int(file.read_text())

    def wait_until_it_waits(self, seconds: float) -> None:
        """Until it has found that what is left is with other workers."""
        deadline = time.monotonic() + seconds
        while WAITS not in self.log():
            assert not self.ended, self.log()
            assert time.monotonic() < deadline, f"does not wait after {seconds} s:\n{self.log()}"
            time.sleep(0.005)

    @property
    def ended(self) -> bool:
        return (self.scratch / "code").exists()

    def log(self) -> str:
        return (self.scratch / "worker.log").read_text()


@dataclass(frozen=True)
class KilledDump:
    """What became of a dump that was killed again and again, then left alone."""

    killed_after: list[float]
    """Seconds from when each launch took its first shard; negative: before that."""
    shards_after: list[int]
    """How many shards had a receipt at each kill."""
    twice: list[str]
    """Shards that were written although they had a receipt."""
    objects: dict[str, str]
    """sha256 of every object of the finished artifact, by its logical name."""


def objects_of(artifact: Artifact) -> dict[str, str]:
    """sha256 of each object that counts, by its logical name."""
    return {entry.name: entry.sha256 for entry in artifact.covered_objects(artifact.receipts())}


def begun(artifact: Artifact, worker: Worker, seconds: float = 60) -> bool:
    """Waits until the worker holds a lease; False if it ends before."""
    deadline = time.monotonic() + seconds
    known = {entry.path: entry.modified for entry in artifact.store.list(artifact.path("leases"))}
    while not worker.ended:
        now = {entry.path: entry.modified for entry in artifact.store.list(artifact.path("leases"))}
        if any(known.get(path) != modified for path, modified in now.items()):
            return True
        assert time.monotonic() < deadline, worker.log()
        time.sleep(0.002)
    return False


def undisturbed_dump(workers: ForkedWorkers, spec: WorkerSpec) -> tuple[dict[str, str], float]:
    """The objects of a dump that nobody disturbs, and its seconds from its first shard on."""
    artifact = Artifact(open_store(spec.store), spec.directory)
    worker = workers.start(spec)
    assert begun(artifact, worker), worker.log()
    start = time.monotonic()
    assert worker.wait(600) == 0, worker.log()
    return objects_of(artifact), time.monotonic() - start


def killed_dump(
    workers: ForkedWorkers,
    spec_of: Callable[[], WorkerSpec],
    num_kills: int,
    chance: random.Random,
    undisturbed_seconds: float,
) -> KilledDump:
    """Launches a dump, kills it at a random moment, launches it anew …, and lets the last launch end.

    Args:
        spec_of: a new launch of the same artifact: another attempt and scratch folder each time.
        num_kills: how often.
        chance: where the moments come from.
        undisturbed_seconds: what a whole dump takes from its first shard on.
    """
    artifact = Artifact(open_store(spec_of().store), spec_of().directory)
    killed_after, shards_after = [], []
    made: dict[str, bytes] = {}
    twice: set[str] = set()

    def look(attempt: str) -> None:
        folders = {entry.path.split("/")[4] for entry in artifact.store.list(artifact.path("data"))}
        # Written by this launch, with a receipt of an earlier one.
        twice.update(shard for shard in made if f"{shard}-{attempt}" in folders)
        for entry in artifact.store.list(artifact.path("shards")):
            shard, data = Path(entry.path).stem, artifact.store.get(entry.path)
            if made.setdefault(shard, data) != data:
                twice.add(shard)

    for _ in range(num_kills):
        spec = spec_of()
        worker = workers.start(spec)
        # Each launch gets about its part of the work: else the first few would finish it. A quarter dies before.
        moment = chance.uniform(-0.5, 1.5) * undisturbed_seconds / (num_kills + 1)
        if moment >= 0:
            assert begun(artifact, worker), worker.log()
            time.sleep(moment)
        else:
            time.sleep(chance.uniform(0, 0.5))
        assert not worker.ended, worker.log()
        worker.kill()
        assert worker.wait(10) == -9, worker.log()
        look(spec.attempt)
        killed_after.append(moment)
        shards_after.append(len(made))
    spec = spec_of()
    worker = workers.start(spec)
    assert worker.wait(600) == 0, worker.log()
    look(spec.attempt)
    return KilledDump(killed_after, shards_after, sorted(twice), objects_of(artifact))


def _serve() -> None:
    from tasks.dump_logits.dump import Dump
    from tasks.dump_logits.worker import run
    from tasks.worker.job import worker_main

    # transformers imports these when a model is loaded.
    for family in ("llama", "qwen2"):
        importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    pause = Dump._pause

    def tell_and_pause(self: Dump) -> None:
        print(WAITS, flush=True)
        pause(self)

    Dump._pause = tell_and_pause  # type: ignore[method-assign]
    print("ready", flush=True)
    for line in sys.stdin:
        spec = Path(line.strip())
        child = os.fork()
        if child == 0:
            log = os.open(spec.with_name("worker.log"), os.O_WRONLY | os.O_CREAT)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.argv = ["worker", "--spec", str(spec)]
            worker_main(run)
        print(child, flush=True)
        threading.Thread(target=_report, args=(child, spec.with_name("code")), daemon=True).start()


def _report(process: int, file: Path) -> None:
    draft = file.with_name("code.draft")
    draft.write_text(str(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])))
    draft.rename(file)


if __name__ == "__main__":
    _serve()
