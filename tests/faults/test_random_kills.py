"""Twenty runs of micro, each killed with -9 at a moment drawn over its whole duration and begun again."""

from __future__ import annotations

import os
import random
import subprocess
import time

import pytest

from tests.e2e.micro_run import MicroRun
from tests.faults.conftest import ScenesOf, Tell
from tests.faults.victim import Victim

RUNS = 20
_LATE = 5
"""Runs that may end before their moment comes, and are begun anew with an earlier one: no two take the same time."""


@pytest.mark.timeout(3 * 3600)
@pytest.mark.faults(
    f"kill -9 of the flow's process, {RUNS} runs on S3, each at a random moment",
    "The same command again ends with the same digest of every stage.",
)
def test_twenty_runs_killed_at_random_moments(scenes: ScenesOf, calm: MicroRun, tell: Tell) -> None:
    seed = int(os.environ.get("MEDIUS_KILL_SEED") or random.SystemRandom().randrange(2**32))
    print(f"MEDIUS_KILL_SEED={seed}")
    chance = random.Random(seed)
    late = 0
    stood = []
    for number in range(RUNS):
        # One moment in each twentieth of the duration, so that no part of it is left out by chance.
        moment = (number + chance.random()) / RUNS * calm.seconds
        scene = scenes(part=f"{number}")
        victim = scene.start("killed")
        while ends_before(victim, moment):
            late += 1
            assert late <= _LATE, f"{late} runs ended before they were to be killed; MEDIUS_KILL_SEED={seed}"
            moment *= chance.random()
            scene = scenes(part=f"{number}-{late}")
            victim = scene.start("killed")
        working = victim.kill()
        victim.require_nothing_left(time.monotonic())
        saved = scene.saved()
        stood.append(len(saved.manifests))
        print(f"{number}: killed after {moment:.1f} s with {stood[-1]} stages finished, in {working}")
        scene.run("again")
        scene.require_kept(saved)
        scene.require_promises(calm, dict.fromkeys(working, 1))
    tell(f"seed {seed}, with {min(stood)} to {max(stood)} stages finished")


def ends_before(victim: Victim, seconds: float) -> bool:
    """Whether a run ends well by itself within so long."""
    try:
        code = victim.process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    assert code == 0, f"it ended by itself with exit code {code}:\n{victim.said()[-5000:]}"
    victim.require_nothing_left(time.monotonic())
    return True
