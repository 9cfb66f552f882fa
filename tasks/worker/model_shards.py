"""What is measured of several models in one process, each a shard of its own, the unit of resume."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from tasks.artifacts.manifest import ShardReceipt
from tasks.worker.job import InputArtifact, Job

_FILE = "measured.json"


class Measured(Protocol):
    """A record of one model."""

    @property
    def fault(self) -> str | None:
        """Why something of it was not measured."""

    def model_dump_json(self) -> str: ...


Record = TypeVar("Record", bound=Measured)


def measured_models(
    job: Job,
    models: Mapping[str, InputArtifact],
    read: Callable[[bytes], Record],
    bench: Callable[[], Callable[[str, InputArtifact], Record]],
) -> dict[str, Record]:
    """The record of each model by its name, in the models' order: from its shard, or measured and committed now.

    Args:
        models: what is measured, by name.
        read: a record from its JSON.
        bench: prepares what measures a model; called only where a shard is missing.
    """
    receipts = job.receipts()
    missing = [name for name in models if _shard(name) not in receipts]
    if missing:
        measure = bench()
        for done, name in enumerate(missing, len(models) - len(missing)):
            job.progress(done, len(models), "models", model=name)
            _commit(job, name, models[name], measure)
            _give_memory_back()
        job.progress(len(models), len(models), "models")
        receipts = job.receipts()
    return {name: read(_bytes(job, receipts[_shard(name)])) for name in models}


def _shard(name: str) -> str:
    return f"model-{name}"


def _commit(job: Job, name: str, source: InputArtifact, measure: Callable[[str, InputArtifact], Measured]) -> None:
    started = time.monotonic()
    job.leave_if_asked()
    measured = measure(name, source)
    shard = job.new_directory(_shard(name))
    (shard / _FILE).write_text(measured.model_dump_json() + "\n", encoding="utf-8")
    job.commit_shard(_shard(name), shard, {"seconds": time.monotonic() - started})
    job.log(f"measured {name}{f': {measured.fault}' if measured.fault else ''}")


def _bytes(job: Job, receipt: ShardReceipt) -> bytes:
    [entry] = receipt.objects
    return job.store.get(job.artifact.path(entry.path))


def _give_memory_back() -> None:
    """So that the next model has room. Without CUDA in use the last line does nothing."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
