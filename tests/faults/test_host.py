"""A host without room, and one whose clock is wrong."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.micro_run import MicroRun
from tests.faults.conftest import ScenesOf, Tell
from tests.faults.prefect_server import PrefectServer
from tests.faults.scene import Scene
from tests.faults.victim import end_all

pytestmark = pytest.mark.timeout(3000)

SMALL, LARGE = "8m", "2g"
"""Of the disk: too small for store and scratch of micro, which need twice as much; and large enough for all."""
_SKEWED = Path(__file__).with_name("skewed_clock")


@pytest.fixture
def small_disk(place: Path) -> Iterator[Path]:
    """A file system in memory of SMALL bytes."""
    folder = place / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a file system of its own cannot be mounted here ({mounted.stderr.strip()}); run it as root")
    yield folder
    end_all(folder)
    # As soon as the last of those that were killed has gone.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.faults(
    "The disk of store and scratch is full", "One sentence says so; with more room the same command goes on."
)
def test_a_full_disk(small_disk: Path, prefect: PrefectServer, calm: MicroRun, tell: Tell) -> None:
    # Else the run is refused before it begins: that it does not fit is forecast.
    settings = ("require_room=false",)
    store, logs = str(small_disk / "store"), small_disk.parent
    scene = Scene(small_disk / "run", store, prefect.environment, settings, log_folder=logs)
    said = scene.run("full", code=1)
    sentence = said.strip().splitlines()[-1]
    assert "Traceback" not in said, said[-3000:]
    assert "Last lines of" not in said, said[-3000:]
    assert "No space left" in sentence or "full" in sentence, sentence
    saved = scene.saved()
    assert saved.manifests, "the disk was full before anything was finished"
    scene.verify()
    subprocess.run(["mount", "-o", f"remount,size={LARGE}", str(small_disk)], check=True)
    scene.run("room")
    scene.require_kept(saved)
    unfinished = [label for label in scene.steps if label not in saved.manifests]
    scene.require_promises(calm, dict.fromkeys(unfinished, 1))
    tell(f"after {len(saved.manifests)} of {len(scene.steps)} stages")


def skewed(scene: Scene, seconds: int) -> Scene:
    """The same store for runs on a host whose clock is ahead by so much."""
    ahead = {"PYTHONPATH": str(_SKEWED), "MEDIUS_CLOCK_AHEAD": str(seconds)}
    return Scene(scene.folder, scene.uri, {**scene.variables, **ahead}, scene.settings)


@pytest.mark.faults(
    "The clock of a second host is 10 minutes ahead",
    "Its run takes over no lease of a living one; both end well.",
)
def test_a_clock_that_is_ahead(scenes: ScenesOf, calm: MicroRun, tell: Tell) -> None:
    right = scenes()
    ahead = skewed(right, 600)
    first = right.start("right", folder="right")
    first.wait_until(lambda: right.names("logits-qwen", "shards"), "a dump has a shard", 900)
    second = ahead.start("ahead", folder="ahead")
    ahead.finish(second)
    right.finish(first)
    right.require_promises(calm, joined=("logits-llama", "logits-qwen"))
    makers = [manifest.provenance.flow_run for manifest in right.committed().values()]
    tell(f"of {len(makers)} stages the one with the right clock has made {makers.count(makers[0])}")


@pytest.mark.faults("The clock is 20 minutes ahead, more than S3 allows", "The run is refused with a sentence at once.")
def test_a_clock_that_s3_refuses(scenes: ScenesOf, tell: Tell) -> None:
    wrong = skewed(scenes(), 1200)
    said = wrong.run("wrong", code=1)
    sentence = said.strip().splitlines()[-1]
    assert "Traceback" not in said, said[-3000:]
    assert "clock" in sentence, sentence
    assert not wrong.committed()
    tell(f'"{sentence.partition(", as ")[2]}"')
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in said
