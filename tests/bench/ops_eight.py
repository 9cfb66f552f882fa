"""Eight runs at once against one Prefect server and one bucket: four of one recipe, four of another."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence

from flows.dag import build
from flows.profiles import load_profile
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.store import Store, open_store
from tasks.runtime.declare import Step
from tests.bench.operated import MOST_SECONDS, servers
from tests.bench.records import Measured, Measurement
from tests.bench.rows_ops import PIPELINES
from tests.e2e.micro_run import MEDIUS

RECIPES: tuple[Sequence[str], ...] = ((), ("branches.qwen.distill.recipe.optimizer.learning_rate=0.001",))
"""The second one has a training of its own, and what follows from it, and shares the rest."""


def twice(store: Store, step: Step, runs: int) -> int:
    """Shards of a step that were begun more than once, and launches beyond the one that made it.

    A stage whose workers lease its shards may be launched by every run.
    """
    base = f"{step.directory}/data"
    names = {entry.path.removeprefix(f"{base}/").partition("/")[0] for entry in store.list(base)}
    begun = Counter(name.rpartition("-")[0] for name in names)
    if step.stage.shared:
        # Each launch that finds all shards finished sums them up; one summary stands.
        del begun["main"]
    logs = sum(entry.path.endswith(".log") for entry in store.list(f"{step.directory}/logs"))
    allowed = runs if step.stage.shared else 1
    return sum(times - 1 for times in begun.values()) + max(0, logs - allowed)


def eight() -> Iterator[Measured]:
    """Yields the rows of many runs at once."""
    with servers() as operated:
        uri = operated.store("shared")
        started = time.monotonic()
        running = []
        for number in range(PIPELINES):
            settings = [part for setting in RECIPES[number % len(RECIPES)] for part in ("--set", setting)]
            command = [MEDIUS, "run", "micro", "--store", uri, *settings]
            running.append(operated.start(command, f"pipeline-{number}"))
        codes = [process.wait(MOST_SECONDS) for process in running]
        seconds = time.monotonic() - started
        states = Counter(operated.flow_states())
        store = open_store(uri)
        steps = {step.key: step for recipe in RECIPES for step in build(load_profile("micro", recipe))}
        unfinished = [step.label for step in steps.values() if Artifact(store, step.directory).manifest() is None]
        again = {step.label: twice(store, step, PIPELINES) for step in steps.values()}
        said = next((operated.said(f"pipeline-{n}")[-300:] for n, code in enumerate(codes) if code), "")
    where = f"{PIPELINES} runs of micro, {len(RECIPES)} recipes, {len(steps)} keys, SeaweedFS"
    lost = max(sum(code != 0 for code in codes), PIPELINES - states["COMPLETED"]) + len(unfinished)
    yield Measured("ops.eight.lost", lost, f"{where}; {dict(states)}{f'; {said}' if said else ''}")
    told = ", ".join(f"{label} {count}" for label, count in again.items() if count)
    yield Measured("ops.eight.twice", sum(again.values()), f"{where}; {told or 'none'}")
    yield Measured("ops.eight.seconds", seconds, where)


MEASUREMENTS = [Measurement("eight", eight, ("ops.eight.*",))]
