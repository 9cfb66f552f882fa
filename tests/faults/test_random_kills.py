"""Twenty runs of micro, each killed with -9 at a moment drawn over its whole duration and begun again."""

from __future__ import annotations

import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.micro_run import MicroRun
from tests.faults.conftest import Tell
from tests.faults.prefect_server import PrefectServer
from tests.faults.scene import Scene

RUNS = 20
_LATE = 2
"""Runs that may have ended before their moment came: no two runs take the same time."""


@pytest.mark.timeout(3 * 3600)
@pytest.mark.faults(
    f"kill -9 of the flow's process, {RUNS} runs, each at a random moment",
    "The same command again ends with the same digest of every stage.",
)
def test_twenty_runs_killed_at_random_moments(prefect: PrefectServer, calm: MicroRun, place: Path, tell: Tell) -> None:
    seed = int(os.environ.get("MEDIUS_KILL_SEED") or random.SystemRandom().randrange(2**32))
    print(f"MEDIUS_KILL_SEED={seed}")
    chance = random.Random(seed)
    whole = Scene(place / "whole", str(place / "whole" / "store"), prefect.environment)
    started = time.monotonic()
    whole.run("run")
    seconds = time.monotonic() - started
    assert {label: manifest.digest for label, manifest in whole.committed().items()} == calm.digests()

    late = 0
    stood = []
    for number in range(RUNS):
        # One moment in each twentieth of the duration, so that no part of it is left out by chance.
        moment = (number + chance.random()) / RUNS * seconds
        scene = Scene(place / f"{number}", str(place / f"{number}" / "store"), prefect.environment)
        victim = scene.start("killed")
        working: list[str] = []
        try:
            code = victim.process.wait(moment)
            assert code == 0, f"{number} ended by itself with exit code {code}:\n{victim.said()[-5000:]}"
            late += 1
        except subprocess.TimeoutExpired:
            working = victim.kill()
        victim.require_nothing_left(time.monotonic())
        saved = scene.saved()
        stood.append(len(saved.manifests))
        print(f"{number}: killed after {moment:.1f} of {seconds:.0f} s with {stood[-1]} stages finished, in {working}")
        scene.run("again")
        scene.require_kept(saved)
        scene.require_promises(calm, dict.fromkeys(working, 1))
    assert late <= _LATE, f"{late} runs ended before they were to be killed; MEDIUS_KILL_SEED={seed}"
    tell(f"seed {seed}, {RUNS - late} of {RUNS} killed, with {min(stood)} to {max(stood)} stages finished")
