"""An object store that refuses, forgets, truncates and dawdles while micro runs on it."""

from __future__ import annotations

import time

import pytest

from flows.prefect_api import PrefectApi
from tests.e2e.micro_run import MicroRun
from tests.faults.conftest import ProxyOf, ScenesOf, Tell
from tests.faults.prefect_server import PrefectServer
from tests.faults.s3_faults import Storm, Truncation, lose_answers, refuse_every, reset_every, slow_down
from tests.faults.scene import Scene

pytestmark = pytest.mark.timeout(3000)

STORM_SECONDS = 60
"""s3fs gives a request up after 40 s of refusals: a stage has to be tried again."""


def tries(scene: Scene, prefect: PrefectServer) -> dict[str, int]:
    """How often each stage of a scene's only run was tried. Of a launch in a storm not even the log may be kept."""
    [run] = {manifest.provenance.flow_run for manifest in scene.committed().values()}
    wanted = {"flow_runs": {"id": {"any_": [run]}}}
    tasks = PrefectApi.of(prefect.environment).everything("/task_runs/filter", wanted)
    return {task["name"]: task["run_count"] for task in tasks}


@pytest.mark.faults(
    f"503 for every fifth request to S3, and for {STORM_SECONDS} s for every one",
    "The run waits, tries the stage again and goes on by itself.",
)
def test_storms_of_503(scenes: ScenesOf, proxies: ProxyOf, prefect: PrefectServer, calm: MicroRun, tell: Tell) -> None:
    storm = Storm(STORM_SECONDS)
    proxy = proxies(refuse_every(5, storm))
    scene = scenes(proxy)
    victim = scene.start("run")
    victim.wait_until(lambda: scene.names("logits-qwen", "shards"), "a dump has a shard", 900)
    unfinished = [label for label in scene.steps if not scene.finished(label)]
    storm.begin()
    scene.finish(victim)
    # The two stages at work may have lost two of their three tries in the storm.
    scene.require_promises(calm, dict.fromkeys(unfinished, 2))
    assert scene.launched_again() <= 4
    again = sorted(label for label, count in tries(scene, prefect).items() if count > 1)
    assert again, "the storm has cost no stage a try"
    tell(f"{sum(proxy.disturbed.values())} of {proxy.requests} requests refused; tried again: {', '.join(again)}")


@pytest.mark.faults("Every seventh connection to S3 is reset", "The run repeats the requests by itself.")
def test_connections_that_are_reset(scenes: ScenesOf, proxies: ProxyOf, calm: MicroRun, tell: Tell) -> None:
    proxy = proxies(reset_every(7))
    scene = scenes(proxy)
    scene.run("run")
    scene.require_promises(calm)
    assert sum(proxy.disturbed.values()) > 0, "no connection was reset"
    tell(f"{sum(proxy.disturbed.values())} of {proxy.requests} requests reset")


@pytest.mark.faults(
    "Of every third object that is read only the first half arrives", "It is read again; half an object is never used."
)
def test_bodies_that_end_early(scenes: ScenesOf, proxies: ProxyOf, calm: MicroRun, tell: Tell) -> None:
    fault = Truncation(3)
    proxy = proxies(fault)
    scene = scenes(proxy)
    scene.run("run")
    scene.require_promises(calm)
    assert fault.cut > 0, "no object was cut"
    tell(f"{fault.cut} of {fault.seen} objects cut")


@pytest.mark.faults(
    "The answer to every conditional write is lost after the server has committed it",
    "The writer finds that it has won; nothing is made again.",
)
def test_answers_that_are_lost_after_the_commit(scenes: ScenesOf, proxies: ProxyOf, calm: MicroRun, tell: Tell) -> None:
    lost: list[str] = []
    proxy = proxies(lose_answers(lost))
    scene = scenes(proxy)
    scene.run("run")
    scene.require_promises(calm)
    manifests = [path for path in lost if path.endswith("/manifest.json")]
    assert len(set(manifests)) == len(manifests) == len(scene.steps), "every commit has lost its answer once"
    leases = sum("lease" in path for path in lost)
    tell(f"{len(manifests)} manifests, {leases} leases and {len(lost) - len(manifests) - leases} other records")


@pytest.mark.faults(
    "Every request to S3 takes 50 ms more and bodies 2 MB/s", "The run takes longer; nothing is tried twice."
)
def test_slow_storage(scenes: ScenesOf, proxies: ProxyOf, prefect: PrefectServer, calm: MicroRun, tell: Tell) -> None:
    proxy = proxies(slow_down(0.05, 2e6))
    scene = scenes(proxy)
    started = time.monotonic()
    scene.run("run")
    seconds = time.monotonic() - started
    scene.require_promises(calm)
    assert set(tries(scene, prefect).values()) == {1}
    assert seconds > calm.seconds, "nothing was slow"
    tell(f"{proxy.requests} requests; {seconds:.0f} s, undisturbed {calm.seconds:.0f}")
