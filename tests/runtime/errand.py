"""A stage as small as a stage can be, made for the tests of the runtime: declaration and worker in one module.

Its recipe is a text; its artifact holds that text and what its inputs say. Its runtime says how the launch goes, so
that one key can be interrupted in one launch and finished in the next.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tasks.artifacts.errors import BadInputError, StoreError, TransientStoreError
from tasks.artifacts.frozen import Frozen
from tasks.runtime.declare import GateResult, Gates, Runtime, Stage, StageConfig, Step, at_most
from tasks.runtime.devices import VISIBLE
from tasks.worker.job import END_FILE, Job, worker_main

Behaviour = Literal[
    "finish", "bad_input", "preempted", "transient", "killed", "out_of_memory", "traceback", "silent", "no_receipt",
    "work", "deaf", "shards", "recorded", "one_raises", "one_killed", "refused",
]  # fmt: skip


class ErrandRecipe(Frozen):
    text: str
    steps: int = 40


class ErrandRuntime(Runtime):
    behaviour: Behaviour = "finish"
    salt: str = ""
    """Goes into the output, as nothing of a runtime ever should: two launches of one key then differ."""
    replicas: int = 1
    save_when: str = ""
    """For `work`: a file that must be there before a checkpoint is saved, as a large one takes its time."""
    announce: str = ""
    """A folder in which each process of the launch leaves a file named after its process id: its accelerators."""
    end: str = ""
    printed: str = ""
    """For `recorded`: the last sentence of the rank that failed first, if any, and what stands in the log."""


class ErrandGates(Gates):
    max_length: float | None = None


class ErrandConfig(StageConfig):
    recipe: ErrandRecipe
    runtime: ErrandRuntime = ErrandRuntime()
    gates: ErrandGates = ErrandGates()


def judge(metrics: Mapping[str, Any], gates: ErrandGates) -> list[GateResult]:
    return at_most("max_length", metrics.get("length"), gates.max_length, "characters of the text")


class ErrandStage(Stage):
    @property
    def worker(self) -> str:
        return "tests.runtime.errand"


STAGE = ErrandStage(name="errand", version=1, config=ErrandConfig, judge=judge, accelerated=True)


def errand(
    text: str,
    *,
    label: str = "errand",
    inputs: Mapping[str, Step] | None = None,
    steps: int = 40,
    max_length: float | None = None,
    **runtime: Any,
) -> Step:
    config = ErrandConfig(
        recipe=ErrandRecipe(text=text, steps=steps),
        runtime=ErrandRuntime(**runtime),
        gates=ErrandGates(max_length=max_length),
    )
    return Step(STAGE, label, config, dict(inputs or {}))


def run(job: Job) -> None:
    runtime = ErrandRuntime.model_validate(job.runtime)
    recipe = ErrandRecipe.model_validate(job.recipe)
    if runtime.announce:
        (Path(runtime.announce) / str(os.getpid())).write_text(os.environ.get(VISIBLE, ""))
    if runtime.behaviour == "bad_input":
        raise BadInputError("the recipe asks for the impossible; ask for less")
    if runtime.behaviour == "preempted":
        job.preempted()
    if runtime.behaviour == "transient":
        raise TransientStoreError("s3://bucket/x: the object store does not answer (503)")
    if runtime.behaviour == "refused":
        raise StoreError("the disk of /store is full; free some space there")
    if runtime.behaviour == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if runtime.behaviour == "out_of_memory":
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] can't allocate memory: you tried to allocate 99 bytes")
    if runtime.behaviour == "traceback":
        for line in range(200):
            print(f"line {line}", file=sys.stderr)
        raise KeyError("the cause")
    if runtime.behaviour == "silent":
        os._exit(3)
    if runtime.behaviour == "no_receipt":
        return
    if runtime.behaviour == "recorded":
        if runtime.end:
            (job.scratch / END_FILE).write_text(json.dumps({"code": 1, "message": runtime.end}))
        print(runtime.printed, flush=True)
        os._exit(1)
    if runtime.behaviour in ("one_raises", "one_killed"):
        _sum_until_the_second_fails(job, killed=runtime.behaviour == "one_killed")
    if runtime.behaviour == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        threading.Event().wait(600)
    first = _work(job, recipe, runtime) if runtime.behaviour == "work" else 0
    covers = _shards(job) if runtime.behaviour == "shards" else []
    output = job.new_directory("output")
    inputs = {role: job.input(role).json("said.json")["text"] for role in sorted(job.spec.inputs)}
    (output / "said.json").write_text(json.dumps({"text": recipe.text, "inputs": inputs, "salt": runtime.salt}))
    job.complete(output, {"length": len(recipe.text), "resumed_at": first}, covers)


def _sum_until_the_second_fails(job: Job, killed: bool) -> None:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    for index in range(10_000):
        dist.all_reduce(torch.ones(1))
        if index == 50 and job.rank == 1:
            if killed:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyError("row 0a1b2c")


def _work(job: Job, recipe: ErrandRecipe, runtime: ErrandRuntime) -> int:
    """Steps of 50 ms; a stop saves the number of the next one. Returns the step it began with."""
    found = job.checkpoints.latest(job.scratch / "resume")
    first = found.step if found else 0
    for step in range(first, recipe.steps):
        job.progress(step, recipe.steps, "steps", tokens_per_second=20)
        job.metric(step=step, squares=step**2)
        time.sleep(0.05)
        if job.stop_requested:
            while runtime.save_when and not Path(runtime.save_when).exists():
                time.sleep(0.05)
            state = job.new_directory("checkpoint")
            (state / "step").write_text(str(step + 1))
            if job.rank == 0:
                job.checkpoints.save(step + 1, state, {}, keep=1)
            job.preempted()
    return first


def _shards(job: Job) -> list[str]:
    names = [f"{index:05}" for index in range(3)]
    for name in names:
        if name not in job.receipts():
            directory = job.new_directory(name)
            (directory / "part").write_text(name)
            job.commit_shard(name, directory)
    return names


if __name__ == "__main__":
    worker_main(run)
