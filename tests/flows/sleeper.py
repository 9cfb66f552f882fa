"""A deployment for tests: a recipe's flow run with a record and a task that goes on until it is killed."""

from __future__ import annotations

import os
import time
from pathlib import Path

from prefect import flow, runtime, task

from tasks.artifacts.process_identity import own_process
from tasks.artifacts.runs import RunRecord, write_run
from tasks.artifacts.store import open_store


@task
def sleep(file: Path) -> None:
    """Writes the process's number, and sleeps."""
    file.with_suffix(".new").write_text(str(os.getpid()))
    file.with_suffix(".new").replace(file)
    time.sleep(3600)


@flow(name="distillation")
def sleeper() -> None:
    """Sleeps in a task."""
    run = str(runtime.flow_run.id)
    record = RunRecord(
        run=run, profile="sleeper", config={}, steps=(), started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        process=own_process(),
    )  # fmt: skip
    write_run(open_store(os.environ["MEDIUS_STORE"]), record)
    sleep.submit(Path(f"{run}.pid").absolute()).result()
