"""One run of micro, killed with -9 inside a dump, inside a distillation, before a commit and inside the fine-tuning,
then asked to stop inside the evaluation: what is made in the end is bit for bit what an undisturbed run makes, and
almost nothing is made twice.

The moments come from a seed that is printed; MEDIUS_KILL_SEED repeats them.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.runs import all_runs, write_run
from tasks.artifacts.store import open_store
from tests.e2e.micro_run import MEDIUS, MicroRun, environment, micro_steps, run_micro
from tests.faults.prefect_server import PrefectServer
from tests.faults.scene import Scene
from tests.faults.victim import Victim, is_worker, processes_in

pytestmark = pytest.mark.timeout(3000)

DRIVER = Path(__file__).with_name("kill_before_commit.py")


@pytest.fixture(scope="module")
def chance() -> random.Random:
    seed = int(os.environ.get("MEDIUS_KILL_SEED") or random.SystemRandom().randrange(2**32))
    print(f"MEDIUS_KILL_SEED={seed}")
    return random.Random(seed)


def kill(victim: Victim, after: float) -> None:
    """kill -9 some seconds from now, and nothing of the run stays on the machine."""
    time.sleep(after)
    assert victim.process.poll() is None, "the run ended before it could be killed"
    assert any(is_worker(command) for command in processes_in(victim.folder).values())
    victim.kill()
    victim.require_nothing_left(time.monotonic())


@pytest.mark.faults(
    "kill -9 in a dump, a distillation, before a commit, in the fine-tuning, and a signal to stop in the evaluation",
    "The same command again ends with the same bytes, on local disk too; no finished step is made again.",
)
def test_a_run_killed_again_and_again_ends_as_if_undisturbed(
    prefect: PrefectServer, calm: MicroRun, chance: random.Random, tmp_path: Path
) -> None:
    run = Scene(tmp_path, str(tmp_path / "store"), prefect.environment)
    dumps, trainings = ("logits-llama", "logits-qwen"), ("distill-llama", "distill-qwen")

    # Inside a dump: some shards have receipts, others do not. This run has a Prefect server of its own, which ends with
    # it.
    victim = Scene(run.folder, run.uri).start("dump")
    victim.wait_until(lambda: any(run.names(label, "shards") - {"main.json"} for label in dumps), "a shard is finished")
    kill(victim, chance.uniform(0, 0.7))
    shards = {label: run.receipts(label) for label in dumps}
    made = run.manifests()
    assert not all(label in made for label in dumps)

    # Inside a distillation, after a checkpoint.
    victim = run.start("distill")
    victim.wait_until(lambda: any(run.checkpoint(label) for label in trainings), "a checkpoint is saved")
    kill(victim, chance.uniform(0, 0.3))
    steps = {label: run.checkpoint(label) for label in trainings if not run.finished(label)}
    made |= run.manifests()

    # Between the last object and the manifest.
    label = chance.choice(["revert-llama", "fuse"])
    victim = run.start("commit", command=[sys.executable, DRIVER, label, "run", "micro", "--store", run.uri])
    victim.wait_until(lambda: victim.process.poll() is not None, f"{label} is committed")
    assert victim.process.returncode == -9, victim.log.read_text()
    victim.require_nothing_left(time.monotonic())
    assert not run.finished(label)
    assert "main.json" in run.names(label, "shards")
    launches = len(run.logs(label))
    made |= run.manifests()

    # Inside the fine-tuning.
    victim = run.start("sft")
    victim.wait_until(lambda: run.checkpoint("sft"), "the fine-tuning has saved a checkpoint")
    kill(victim, chance.uniform(0, 0.05))
    assert run.finished(label)
    assert len(run.logs(label)) == launches, f"{label} was only to be committed, and was launched again"
    if not run.finished("sft"):
        steps["sft"] = run.checkpoint("sft")
    made |= run.manifests()

    # Asked to stop inside the evaluation, by Ctrl-C or by what a scheduler sends.
    victim = run.start("evaluate")
    victim.wait_until(lambda: run.names("evaluate", "shards"), "one model is evaluated")
    interrupted_at = time.monotonic()
    if chance.random() < 0.5:
        victim.interrupt()
    else:
        victim.process.terminate()
    assert victim.process.wait(30) == 4, victim.log.read_text()
    victim.require_nothing_left(interrupted_at)
    assert "run the same command again" in victim.log.read_text()
    shards["evaluate"] = run.receipts("evaluate")
    made |= run.manifests()

    # To the end.
    last = run_micro(tmp_path, run.uri, prefect.environment)
    assert last.code == 0, last.err
    assert last.digests() == calm.digests()
    assert last.out.replace(run.uri, calm.store) == calm.out

    # What stood after a kill stands unchanged: no finished step, and no finished shard, was made again.
    assert run.manifests() | made == run.manifests()
    for label, receipts in shards.items():
        assert run.receipts(label) | receipts == run.receipts(label)
        left_over = len(run.names(label, "data")) - len(run.receipts(label))
        assert left_over <= 1, f"{label}: {left_over} shards were begun twice, of one that each worker had in hand"
    for label, step in steps.items():
        wanted = f"goes on after step {step} of" if step else "the checkpoint after step"
        assert any(wanted in log for log in run.logs(label)), f"{label} did not go on after step {step}"
    left = {path.name for path in (tmp_path / ".medius" / "scratch").glob("*")}
    assert left <= {"inputs", "tensorboard"}, "what a launch leaves is its inputs and its curves"


def test_a_killed_runs_store_can_be_looked_at(calm: MicroRun, tmp_path: Path) -> None:
    """Status of a store with the record of a run whose process is gone without having ended it."""
    store = open_store(str(tmp_path / "store"))
    source = open_store(calm.store)
    for entry in source.list("artifacts"):
        if "/data/" not in entry.path and not entry.path.startswith("artifacts/publish"):
            store.put(entry.path, source.get(entry.path))
    for record in all_runs(source):
        write_run(store, record.model_copy(update={"state": "running", "ended": None}))
    result = subprocess.run(
        [MEDIUS, "status", "micro", "--store", store.uri],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "ended without a word" in result.stdout
    total = len(micro_steps())
    assert f"{total - 1} of {total} stages finished" in result.stdout
    published = Artifact(store, micro_steps()[-1].directory)
    assert published.manifest() is None
