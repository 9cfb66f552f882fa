"""What a run takes beside its stages' own work: wall time a stage, and CPU time of the flow's process."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bench.flow_meter import Metered
from tests.bench.operated import servers
from tests.bench.records import Measured, Measurement
from tests.e2e.micro_run import micro_steps

REPETITIONS = 3


def overhead() -> Iterator[Measured]:
    """Yields the rows of runs from nothing."""
    found = []
    with servers() as operated:
        for number in range(REPETITIONS):
            name = f"run-{number}"
            file = operated.folder / f"{name}.json"
            # One stage at a time: then what no worker's process had is the run's own.
            command: list[str | Path] = [
                sys.executable, "-m", "tests.bench.flow_meter", file, "run", "micro", "--store", operated.store(name),
                "--set", "parallel_stages=1",
            ]  # fmt: skip
            operated.run(command, name)
            found.append(Metered(**json.loads(file.read_text())))
    stages = len(micro_steps())
    if any(len(run.workers) != stages for run in found):
        raise RuntimeError(f"{[len(run.workers) for run in found]} launches of {stages} stages")
    beside = [1000 * (run.flow - sum(run.workers.values())) / stages for run in found]
    where = f"micro from nothing, {stages} stages one at a time, SeaweedFS and a running Prefect server on this host"
    yield Measured(
        "ops.stage_ms",
        statistics.median(beside),
        f"{where}; flow {found[0].flow:.0f} s, of it workers {sum(found[0].workers.values()):.0f} s; "
        f"{min(beside):.0f} to {max(beside):.0f}",
        len(found),
    )
    cpu = [run.cpu for run in found]
    spread = f"{min(cpu):.2f} to {max(cpu):.2f}"
    yield Measured("ops.flow_cpu_seconds", statistics.median(cpu), f"{where}; {spread}", len(cpu))


MEASUREMENTS = [Measurement("overhead", overhead, ("ops.stage_ms", "ops.flow_cpu_seconds"))]
