"""Stages on pools of their own: a recipe's deployment, two pools with a worker each, and a dump of two replicas."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from flows.dag import build
from flows.profiles import load_profile
from flows.stack_processes import marked, wait_until
from flows.stack_services import STORE, worker_name
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.store import Store, open_store
from tasks.artifacts.verify import find_damage
from tests.flows.test_stack import Running

UNTIL = "logits-llama"
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
MORE_TEXT = "[{kind: stdlib_docs, max_bytes: 1500000}]"
"""Enough for both replicas to be at work before one is killed."""
_HELD_AT_ONCE = 4
"""Shards that one worker of a dump has in hands: one in the forward pass, the others on their way into the store."""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    stack = Running(tmp_path)
    yield stack
    stack.medius("down")


def start(running: Running, overrides: list[str]) -> str:
    """Starts the recipe of micro up to its first dump; the id of its flow run."""
    found = running.api("/deployments/filter", {"deployments": {"name": {"any_": ["micro"]}}})
    [deployment] = [entry["id"] for entry in found]
    parameters = {"profile": "micro", "options": {"until": UNTIL, "overrides": overrides}}
    run: str = running.api(f"/deployments/{deployment}/create_flow_run", {"parameters": parameters})["id"]
    return run


def runs(running: Running, **wanted: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = running.api("/flow_runs/filter", {"flow_runs": wanted})
    return found


def wait_for_end(running: Running, run: str) -> dict[str, Any]:
    assert wait_until(lambda: runs(running, id={"any_": [run]})[0]["state_type"] in ENDED, 1800)
    return runs(running, id={"any_": [run]})[0]


def artifacts(store: Store, overrides: list[str]) -> dict[str, Artifact]:
    steps = build(load_profile("micro", overrides), UNTIL)
    return {step.label: Artifact(store, step.directory) for step in steps}


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_each_stage_runs_where_it_says_and_a_lost_replica_costs_its_shard(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = running.up()
    assert said.returncode == 0, said.stderr
    for name, value in running.environment().items():
        monkeypatch.setenv(name, value)
    store = open_store(STORE)

    overrides = ["branches.llama.corpus.runtime.pool=cpu", "branches.llama.dump_logits.runtime.pool=gpu"]
    ended = wait_for_end(running, start(running, overrides))
    assert ended["state_type"] == "COMPLETED", ended["state"]
    places = {}
    for label, artifact in artifacts(store, overrides).items():
        manifest = artifact.manifest()
        assert manifest is not None
        places[label] = (manifest.provenance.pool, manifest.provenance.pool_worker)
    assert places == {
        "model-llama-teacher": ("medius", worker_name("medius")),
        "corpus-llama": ("cpu", worker_name("cpu")),
        UNTIL: ("gpu", worker_name("gpu")),
    }

    overrides = [
        *(f"branches.{name}.corpus.recipe.sources={MORE_TEXT}" for name in ("llama", "qwen")),
        "branches.llama.dump_logits.recipe.rows_per_shard=16",
        "branches.llama.dump_logits.runtime.pool=cpu",
        "branches.llama.dump_logits.runtime.replicas=2",
    ]
    dump = artifacts(store, overrides)[UNTIL]
    run = start(running, overrides)
    assert wait_until(lambda: len(makers(dump)) == 2 or bool(runs(running, id={"any_": [run]})[0]["end_time"]), 1800)
    assert len(makers(dump)) == 2, "both replicas have made shards before one is killed"
    lost = kill_a_replica(running)
    ended = wait_for_end(running, run)
    assert ended["state_type"] == "COMPLETED", ended["state"]
    assert runs(running, id={"any_": [lost]})[0]["state_type"] == "CRASHED"
    manifest = dump.manifest()
    assert manifest is not None
    assert find_damage(dump, manifest) == []
    assert manifest.provenance.attempts == 2
    folders = {tuple(entry.path.split("/")[4:5]) for entry in store.list(dump.path("data"))}
    made = Counter(folder.rpartition("-")[0] for (folder,) in folders)
    assert set(made) >= set(dump.receipts())
    again = [shard for shard, times in made.items() if times > 1]
    assert len(again) <= _HELD_AT_ONCE, "only what the lost one had in hands was made again"
    assert max(made.values()) <= 2


def makers(dump: Artifact) -> set[str]:
    """The attempts that have finished a shard of the dump."""
    receipts = dump.receipts().items()
    parts = {entry.path.split("/")[1] for shard, receipt in receipts if "-" in shard for entry in receipt.objects}
    return {part.rpartition("-")[2] for part in parts}


def kill_a_replica(running: Running) -> str:
    """kill -9 of one flow process that makes the dump; the id of its flow run."""
    found = marked(running.state()["token"])
    workers = set()
    for pid in found:
        # Others come and go meanwhile.
        with suppress(OSError):
            if b"tasks.dump_logits.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                workers.add(pid)
    assert len({found[pid]["PREFECT__FLOW_RUN_ID"] for pid in workers}) == 2
    pid = max(workers)
    run = found[pid]["PREFECT__FLOW_RUN_ID"]
    # Between the two stands the keeper of the stage's processes.
    while found.get(above := _parent(pid), {}).get("PREFECT__FLOW_RUN_ID") == run:
        pid = above
    os.kill(pid, signal.SIGKILL)
    return run


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
