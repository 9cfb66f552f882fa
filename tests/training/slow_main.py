"""One of two processes of a training, of which the main one works for longer than a collective may take.

python -m tests.training.slow_main SPEC FAULT, where FAULT is "slow", or "frozen": the main process stops in its first
work and says nothing more.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch.distributed import distributed_c10d

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.checkpoint import CheckpointFolder
from tasks.training import processes as processes_module
from tasks.training.checkpoints import TrainingCheckpoints
from tasks.training.loop import local_directory
from tasks.training.settings import TrainingRuntime
from tasks.worker.job import Job
from tasks.worker.spec import WorkerSpec

LIMIT = timedelta(seconds=4)
WORK_SECONDS = 6


def slowed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same, which takes a while the first time."""
    seconds = [WORK_SECONDS]

    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(seconds.pop() if seconds else 0)
        return function(*args, **options)

    return slow


def main(spec_file: Path, fault: str) -> None:
    """Fetches an input, looks for a checkpoint and writes one, each slowly on the main process alone."""
    processes_module.BEAT_SECONDS, processes_module.SILENCE = 0.5, LIMIT
    job = Job(WorkerSpec.model_validate_json(spec_file.read_bytes()))
    runtime = TrainingRuntime(device="cpu", launcher="torchrun", num_processes=2)
    processes = processes_module.join(runtime, job.scratch)
    if fault == "slow":
        distributed_c10d._set_pg_timeout(LIMIT)
    if processes.is_main:
        if fault == "frozen":
            Artifact.fetch = lambda *_: os.kill(os.getpid(), signal.SIGSTOP)  # type: ignore[assignment]
        else:
            Artifact.fetch = slowed(Artifact.fetch)  # type: ignore[method-assign]
        for name in ("latest", "save"):
            setattr(CheckpointFolder, name, slowed(getattr(CheckpointFolder, name)))
    print(sorted(path.name for path in local_directory(job.input("model"), processes).iterdir()), flush=True)
    # What an engine writes makes no difference here.
    engine: Any = SimpleNamespace(save=lambda directory: directory.mkdir(exist_ok=True), shape={})
    checkpoints = TrainingCheckpoints(job, engine, processes, runtime)
    print(checkpoints.resume(), flush=True)
    checkpoints.save(1, {})
    checkpoints.wait()
    print(checkpoints.last_step, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
