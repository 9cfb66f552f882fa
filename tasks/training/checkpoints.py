"""Checkpoints of one training: written by all processes to scratch, uploaded by the main one while training goes on.

The next save waits for the upload before it, so scratch never holds more than one. A checkpoint counts once its list of
files is in the store. One that was written under another world size, ZeRO stage or offload is converted when it is
resumed.
"""

from __future__ import annotations

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tasks.artifacts.checkpoint import Checkpoint
from tasks.training.engine import STATE, TrainingEngine
from tasks.training.processes import Processes
from tasks.training.settings import TrainingRuntime
from tasks.training.universal import convert
from tasks.worker.job import Job


class TrainingCheckpoints:
    """Saves and resumes one training. All processes call every method together, `last_step` apart."""

    def __init__(self, job: Job, engine: TrainingEngine, processes: Processes, runtime: TrainingRuntime) -> None:
        self._job = job
        self._engine = engine
        self._processes = processes
        self._keep = runtime.keep_checkpoints
        self._uploader = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._upload: Future[None] | None = None
        self._uploading: int | None = None
        self._last_step: int | None = None

    @property
    def last_step(self) -> int | None:
        """The newest step whose checkpoint is in the store; on other processes than the main one, as of the last wait.

        None before the first.
        """
        if self._upload is not None and self._upload.done() and not self._upload.exception():
            return self._uploading
        return self._last_step

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Writes the engine and `state`, which is JSON, and begins the upload.

        Raises:
            StoreError: the upload before this one failed.
        """
        self.wait()
        directory = self._job.scratch / f"checkpoint-{step}"
        self._engine.save(directory)
        self._uploading = step
        if self._processes.is_main:
            stamp = {"training": state, "shape": self._engine.shape}
            self._upload = self._uploader.submit(self._send, step, directory, stamp)

    def wait(self) -> None:
        """Returns on every process when the last checkpoint is in the store.

        Raises:
            StoreError: on the main process, which then ends the launch; the others wait for that.
        """
        upload, self._upload = self._upload, None
        step, self._uploading = self._uploading, None
        self._processes.settle(upload)
        if step is not None:
            self._last_step = step

    def settle(self) -> None:
        """Returns on every process when the last upload has ended, well or not: for a training that has."""
        upload, self._upload = self._upload, None
        # The uploader has one thread, so that this waits for what it uploads.
        error = self._processes.settle(None if upload is None else self._uploader.submit(upload.exception))
        if error is not None:
            self._job.log(f"the last checkpoint could not be stored: {error}")

    def close(self) -> None:
        """Waits for what this process uploads, whatever came of the training."""
        self._uploader.shutdown()

    def resume(self) -> dict[str, Any] | None:
        """Loads the newest whole checkpoint and returns its `state`; None where there is none.

        Raises:
            CorruptArtifactError: DeepSpeed cannot read or convert it, or it holds what no training writes.
        """
        is_main = self._processes.is_main
        newest = self._processes.each(self._fetch_newest if is_main else None)
        newest = self._processes.from_main(newest)
        if newest is None:
            return None
        if newest.state["shape"] == self._engine.shape:
            self._engine.load(newest.directory)
        else:
            self._job.log(
                f"converts the checkpoint after step {newest.step}, which was written under another world size, ZeRO "
                f"stage or offload"
            )
            self._processes.each(partial(convert, newest.directory, STATE) if is_main else None)
            self._engine.load_universal(newest.directory, newest.step)
        self._processes.barrier()
        if is_main:
            shutil.rmtree(newest.directory)
        self._last_step = newest.step
        state: dict[str, Any] = newest.state["training"]
        return state

    def clear(self) -> None:
        """Removes every checkpoint; for an artifact that is complete."""
        if self._processes.is_main:
            self._job.checkpoints.clear()

    def _fetch_newest(self) -> Checkpoint | None:
        return self._job.checkpoints.latest(self._job.scratch / "resume")

    def _send(self, step: int, directory: Path, stamp: dict[str, Any]) -> None:
        self._job.checkpoints.save(step, directory, stamp, self._keep)
        shutil.rmtree(directory)
        self._job.log(f"the checkpoint after step {step} is in the store")
