"""A run of the production recipe in whose store every stage is finished: what a resumed run of weeks pays first."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator

from flows.dag import build
from flows.profiles import load_profile
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import GateFailedError
from tasks.artifacts.fingerprint import sha256_hex
from tasks.artifacts.manifest import InputRecord, Manifest, ObjectRecord, Provenance, digest_of
from tasks.artifacts.store import Store, open_store
from tasks.runtime.declare import GateResult, Step
from tasks.runtime.gates import accept, judge
from tests.bench.operated import servers
from tests.bench.records import Measured, Measurement
from tests.e2e.micro_run import MEDIUS

PROFILE = "medius"
UNTIL = "publish"
"""The whole DAG; the table and the report after it would need a real evaluation."""
FIRST = "model-base"
REPETITIONS = 5


def finish_all(store: Store) -> list[Step]:
    """Finishes every stage with one small object, and accepts what its gates say of that."""
    steps = build(load_profile(PROFILE), UNTIL)
    digests: dict[str, str] = {}
    for step in steps:
        artifact = Artifact(store, step.directory)
        data = step.label.encode()
        entry = ObjectRecord(name="object", path="data/main-00000000/object", size=len(data), sha256=sha256_hex(data))
        store.put(artifact.path(entry.path), data)
        digests[step.key] = digest_of((entry,))
        inputs = {
            role: InputRecord(key=source.key, digest=digests[source.key], directory=source.directory)
            for role, source in step.inputs.items()
        }
        manifest = artifact.commit(
            Manifest(
                stage=step.stage.name, version=step.stage.version, label=step.label, key=step.key,
                digest=digests[step.key], recipe=step.config.recipe.model_dump(mode="json"), inputs=inputs,
                objects=(entry,), metrics={},
                provenance=Provenance(
                    write_id=step.key[:32], created="", seconds=0, attempts=1, flow_run=None, git_sha=None,
                    git_dirty=None, hardware={}, versions={}, runtime={},
                ),
            )
        )  # fmt: skip
        try:
            judge(step, artifact, manifest)
        except GateFailedError as error:
            for result in error.results:
                if isinstance(result, GateResult) and not result.passed:
                    accept(artifact, result.gate, "nothing was computed")
    return steps


def reused() -> Iterator[Measured]:
    """Yields the rows of runs that only look."""
    with servers() as operated:
        uri = operated.store("production")
        steps = finish_all(open_store(uri))
        seconds: dict[str, list[float]] = {UNTIL: [], FIRST: []}
        # The first run of a process warms the file cache for all.
        operated.run([MEDIUS, "run", PROFILE, "--until", FIRST, "--store", uri], "warm-up")
        for number in range(REPETITIONS):
            for until, found in seconds.items():
                started = time.monotonic()
                operated.run([MEDIUS, "run", PROFILE, "--until", until, "--store", uri], f"{until}-{number}")
                found.append(time.monotonic() - started)
        states = Counter(operated.task_states())
    if set(states) != {"Reused"} or states["Reused"] != REPETITIONS * (len(steps) + 1) + 1:
        raise RuntimeError(f"the stages were not all reused: {dict(states)}")
    whole, one = seconds[UNTIL], seconds[FIRST]
    where = f"{len(steps)} stages of {PROFILE} on SeaweedFS, a running Prefect server, from the start of the command"
    yield Measured(
        "ops.reused_seconds", statistics.median(whole), f"{where}; {min(whole):.1f} to {max(whole):.1f}", len(whole)
    )
    more = [1000 * (all_of - first) / (len(steps) - 1) for all_of, first in zip(whole, one, strict=True)]
    yield Measured(
        "ops.reused_stage_ms",
        statistics.median(more),
        f"{where}, less a run of 1 stage, {statistics.median(one):.1f} s; {min(more):.0f} to {max(more):.0f}",
        len(more),
    )


MEASUREMENTS = [Measurement("reused", reused, ("ops.reused_*",))]
