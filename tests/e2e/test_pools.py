"""Stages on pools of their own: a recipe's deployment, two pools with a worker each, a dump of two replicas, and a
training that is cancelled with its recipe.
"""

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
from flows.stack_processes import living_runs, marked, wait_until
from flows.stack_services import STORE, worker_name
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.checkpoint import checkpoint_lists
from tasks.artifacts.store import Store, open_store
from tasks.artifacts.verify import find_damage
from tests.flows.test_stack import Running

UNTIL = "logits-llama"
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
MORE_TEXT = "[{kind: stdlib_docs, max_bytes: 1500000}]"
"""Enough for both replicas to be at work before one is killed."""
_HELD_AT_ONCE = 4
"""Shards that one worker of a dump has in hands: one in the forward pass, the others on their way into the store."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A stack that is up: one for all tests, as it takes long to start."""
    stack = Running(tmp_path_factory.mktemp("pools"))
    try:
        said = stack.up()
        assert said.returncode == 0, said.stderr
        yield stack
    finally:
        stack.medius("down")


@pytest.fixture
def store(running: Running, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in running.environment().items():
        monkeypatch.setenv(name, value)
    return open_store(STORE)


def start(running: Running, overrides: list[str], until: str = UNTIL) -> str:
    """Starts the recipe of micro up to a stage, its first dump; the id of its flow run."""
    found = running.api("/deployments/filter", {"deployments": {"name": {"any_": ["micro"]}}})
    [deployment] = [entry["id"] for entry in found]
    parameters = {"profile": "micro", "options": {"until": until, "overrides": overrides}}
    run: str = running.api(f"/deployments/{deployment}/create_flow_run", {"parameters": parameters})["id"]
    return run


def runs(running: Running, **wanted: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = running.api("/flow_runs/filter", {"flow_runs": wanted})
    return found


def wait_for_end(running: Running, run: str) -> dict[str, Any]:
    assert wait_until(lambda: runs(running, id={"any_": [run]})[0]["state_type"] in ENDED, 1800)
    return runs(running, id={"any_": [run]})[0]


def artifacts(store: Store, overrides: list[str], until: str = UNTIL) -> dict[str, Artifact]:
    steps = build(load_profile("micro", overrides), until)
    return {step.label: Artifact(store, step.directory) for step in steps}


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_each_stage_runs_where_it_says_and_a_lost_replica_costs_its_shard(running: Running, store: Store) -> None:
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


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_a_recipe_that_is_cancelled_takes_the_training_on_another_pool_with_it(running: Running, store: Store) -> None:
    until = "distill-qwen"
    overrides = [
        "branches.qwen.distill.runtime.pool=gpu",
        # It would go on for hours, and saves nothing unless it is stopped.
        "branches.qwen.distill.recipe.steps=1000000",
        "branches.qwen.distill.runtime.checkpoint_every_steps=1000000",
    ]
    run = start(running, overrides, until)

    def trains() -> bool:
        events = (running.folder / ".medius/scratch").glob(f"*-{until}-*/*/events.jsonl")
        return any('"kind":"progress"' in path.read_text() for path in events)

    assert wait_until(lambda: trains() or bool(runs(running, id={"any_": [run]})[0]["end_time"]), 1800)
    [child] = set(at_work(running, "tasks.distill.worker").values())
    assert child != run
    training = artifacts(store, overrides, until)[until]
    assert not list(store.list(training.path("checkpoints")))

    running.api(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    assert wait_until(lambda: not {run, child} & living_runs(), 180), "their processes are still there"
    assert wait_for_end(running, run)["state_type"] == "CANCELLED"
    assert wait_for_end(running, child)["state_type"] == "CANCELLED"
    assert checkpoint_lists(training)


def makers(dump: Artifact) -> set[str]:
    """The attempts that have finished a shard of the dump."""
    receipts = dump.receipts().items()
    parts = {entry.path.split("/")[1] for shard, receipt in receipts if "-" in shard for entry in receipt.objects}
    return {part.rpartition("-")[2] for part in parts}


def kill_a_replica(running: Running) -> str:
    """kill -9 of one flow process that makes the dump; the id of its flow run."""
    workers = at_work(running, "tasks.dump_logits.worker")
    assert len(set(workers.values())) == 2
    pid = max(workers)
    run = workers[pid]
    found = marked(running.state()["token"])
    # Between the two stands the keeper of the stage's processes.
    while found.get(above := _parent(pid), {}).get("PREFECT__FLOW_RUN_ID") == run:
        pid = above
    os.kill(pid, signal.SIGKILL)
    return run


def at_work(running: Running, module: str) -> dict[int, str]:
    """The flow run of each process that runs a stage's worker, by its number."""
    workers = {}
    for pid, variables in marked(running.state()["token"]).items():
        # Others come and go meanwhile.
        with suppress(OSError):
            if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                workers[pid] = variables["PREFECT__FLOW_RUN_ID"]
    return workers


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
