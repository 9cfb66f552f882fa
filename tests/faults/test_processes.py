"""Processes that are killed, frozen or asked to leave while micro runs on S3."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable

import pytest

from tests.e2e.micro_run import MicroRun
from tests.faults.conftest import ScenesOf, Tell
from tests.faults.scene import Scene
from tests.faults.victim import Victim

pytestmark = pytest.mark.timeout(3000)

TRAININGS = ("distill-llama", "distill-qwen")
DUMPS = ("logits-llama", "logits-qwen")


def trained_a_while(scene: Scene, victim: Victim) -> str:
    """Waits until a distillation has saved a checkpoint and is at work; its label."""
    found: list[str] = []

    def at_work() -> bool:
        working = set(victim.labels())
        found[:] = [label for label in TRAININGS if label in working and scene.checkpoint(label)]
        return bool(found)

    victim.wait_until(at_work, "a distillation has a checkpoint", 600)
    return found[0]


def trains_unsaved(scene: Scene, victim: Victim) -> str:
    """Waits until a distillation that saves nothing by itself has trained some steps; its label."""
    found: list[str] = []

    def trains() -> bool:
        found[:] = [label for label in TRAININGS if any('"kind":"progress"' in line for line in victim.events(label))]
        return bool(found)

    victim.wait_until(trains, "a distillation trains", 600)
    assert not scene.checkpoint(found[0]), "it has saved before it was asked to"
    return found[0]


def signal_stage(victim: Victim, label: str, number: signal.Signals, chosen: Callable[[str], bool]) -> None:
    """Sends a signal to those processes of a step whose command line is chosen."""
    hit = [pid for pid, command in victim.workers(label).items() if chosen(command)]
    assert hit, f"no process of {label} was there"
    for pid in hit:
        os.kill(pid, number)


@pytest.mark.faults("kill -9 of a stage's worker", "The run goes on from the last checkpoint by itself.")
def test_a_killed_worker_is_launched_again(scenes: ScenesOf, calm: MicroRun, tell: Tell) -> None:
    scene = scenes()
    victim = scene.start("run")
    label = trained_a_while(scene, victim)
    signal_stage(victim, label, signal.SIGKILL, lambda command: "tasks.worker.keeper" not in command)
    saved = scene.saved()
    scene.finish(victim)
    scene.require_kept(saved, {label})
    scene.require_promises(calm, {label: 1})
    tell(f"{label} after step {saved.checkpoints.get(label, 0)} in the same run")


@pytest.mark.faults(
    "SIGTERM to all processes of a stage, as from a scheduler that takes the node away",
    "It saves a checkpoint; the run goes on from there by itself.",
)
def test_a_preempted_stage_saves_and_goes_on(scenes: ScenesOf, calm: MicroRun, tell: Tell) -> None:
    scene = scenes(
        None, *(f"branches.{name}.distill.runtime.checkpoint_every_steps=1000" for name in ("llama", "qwen"))
    )
    victim = scene.start("run")
    label = trains_unsaved(scene, victim)
    signal_stage(victim, label, signal.SIGTERM, lambda _command: True)
    scene.finish(victim)
    resumed = [step for log in scene.logs(label) for step in re.findall(r"goes on after step (\d+) of", log)]
    assert resumed, "it saved nothing as it was asked to leave, or the second launch began anew"
    scene.require_promises(calm, {label: 1})
    tell(f"{label} after step {resumed[0]}, with no checkpoint before the signal, in the same run")


@pytest.mark.faults("kill -9 of the flow's process", "The same command again makes the rest, and no finished shard.")
def test_a_killed_flow_leaves_nothing_and_is_gone_on_with(scenes: ScenesOf, calm: MicroRun, tell: Tell) -> None:
    scene = scenes()
    victim = scene.start("killed")
    victim.wait_until(lambda: any(scene.names(label, "shards") for label in DUMPS), "a dump has a shard", 600)
    working = victim.kill()
    victim.require_nothing_left(time.monotonic())
    saved = scene.saved()
    scene.run("again")
    scene.require_kept(saved)
    scene.require_promises(calm, dict.fromkeys(working, 1))
    tell(f"in hands were {', '.join(working)}; {len(saved.manifests)} of {len(scene.steps)} stages stood")


@pytest.mark.faults("Two runs of the same recipe at once on one store", "Both end well; every shard is made once.")
def test_two_runs_at_once_share_the_work(scenes: ScenesOf, calm: MicroRun, tell: Tell) -> None:
    scene = scenes()
    runs = [scene.start(name, folder=name) for name in ("one", "two")]
    for victim in runs:
        scene.finish(victim)
    # A dump's shards are leased one by one, so both runs launch it.
    scene.require_promises(calm, joined=DUMPS)
    makers = {manifest.provenance.flow_run for manifest in scene.committed().values()}
    tell(f"{len(makers)} of 2 runs have made stages")


@pytest.mark.faults(
    "A run is frozen until another has taken its lease over, and then goes on",
    "The frozen run notices and takes the other's result; nothing committed changes.",
)
def test_a_stolen_lease_costs_no_result(scenes: ScenesOf, calm: MicroRun, tell: Tell) -> None:
    short = [f"branches.{name}.distill.runtime.lease_ttl_seconds=5" for name in ("llama", "qwen")]
    scene = scenes(None, *short)
    frozen = scene.start("frozen", folder="frozen")
    label = trained_a_while(scene, frozen)
    working = frozen.labels()
    frozen.signal_all(signal.SIGSTOP)
    saved = scene.saved()
    try:
        thief = scene.start("thief", folder="thief")
        thief.wait_until(lambda: scene.finished(label), f"{label} is taken over", 900)
    finally:
        frozen.signal_all(signal.SIGCONT)
    scene.finish(thief)
    scene.finish(frozen)
    scene.require_kept(saved, working)
    scene.require_promises(calm, dict.fromkeys(working, 1))
    tell(f"{label} was taken over after step {saved.checkpoints.get(label, 0)}")
