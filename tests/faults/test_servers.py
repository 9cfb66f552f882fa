"""Servers that are killed while micro runs against them, and come back over what they had written."""

from __future__ import annotations

import threading
import time

import pytest

from tests.e2e.micro_run import MicroRun
from tests.faults.conftest import ProxyOf, ScenesOf, Tell
from tests.faults.prefect_server import PrefectServer
from tests.faults.s3_faults import in_the_middle_of_an_upload, is_data
from tests.seaweed import SeaweedServer

pytestmark = pytest.mark.timeout(3000)

AWAY_SECONDS = 5
LARGE_BYTES = 200_000
"""The smallest weights of micro have more."""


@pytest.mark.faults(
    "kill -9 of the S3 server in the middle of an upload; it comes back on the same folder",
    "The upload is repeated and the run goes on by itself.",
)
def test_an_s3_server_killed_in_an_upload(
    scenes: ScenesOf, proxies: ProxyOf, seaweed: SeaweedServer, calm: MicroRun, tell: Tell
) -> None:
    hit: list[str] = []
    unfinished: list[str] = []

    def wanted(path: str) -> bool:
        if not is_data(path) or "/distill/" not in path:
            return False
        hit.append(path)
        return True

    def lose_the_server() -> None:
        unfinished.extend(label for label in scene.steps if not scene.finished(label))
        seaweed.kill()
        # So long nobody answers at all; what is away is the fault itself, not something to wait for.
        time.sleep(AWAY_SECONDS)
        seaweed.start()

    proxy = proxies(in_the_middle_of_an_upload(lose_the_server, LARGE_BYTES, wanted))
    scene = scenes(proxy)
    scene.run("run")
    assert hit, "no upload was large enough"
    assert sum(proxy.disturbed.values()) == 0, "the upload in whose middle the server was killed got an answer"
    scene.require_promises(calm, dict.fromkeys(unfinished, 1))
    assert scene.launched_again() <= 2, "two stages were at work"
    tell(f"away {AWAY_SECONDS} s from the middle of {hit[0].rpartition('/')[2]} on")


@pytest.mark.faults(
    "kill -9 of the Prefect server; it comes back on its database",
    "The run goes on by itself, or says so in a sentence and the same command again finishes it.",
)
def test_a_prefect_server_killed_and_back(scenes: ScenesOf, prefect: PrefectServer, calm: MicroRun, tell: Tell) -> None:
    scene = scenes()
    victim = scene.start("run")
    victim.wait_until(lambda: scene.names("logits-qwen", "shards"), "a dump has a shard", 900)
    unfinished = [label for label in scene.steps if not scene.finished(label)]
    prefect.kill()
    back = threading.Thread(target=prefect.start)
    back.start()
    code = victim.process.wait(900)
    back.join()
    victim.require_nothing_left(time.monotonic())
    if code == 0:
        tell("in the same run")
    else:
        sentence = victim.said().strip().splitlines()[-1]
        assert code in {1, 4}, victim.said()[-3000:]
        assert "Traceback" not in victim.said(), victim.said()[-3000:]
        assert "Prefect server" in sentence
        assert "same command again" in sentence
        saved = scene.saved()
        scene.run("again")
        scene.require_kept(saved)
        tell("by the same command again")
    scene.require_promises(calm, dict.fromkeys(unfinished, 1))
    assert scene.launched_again() <= 2, "two stages were at work"
