"""The pipeline alone: what overlaps, what waits, and that a failure anywhere ends everything."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from tasks.dump_logits.pipeline import MAX_QUEUED, MAX_SHARDS, Pipeline


class Sink:
    """An output that writes down what is done to it, with a delay or an error where a test wants one."""

    def __init__(self, name: str, log: list[str], at: Callable[[str], None] = lambda _: None) -> None:
        self.name, self.log, self.at = name, log, at
        self.results: list[int] = []

    def _did(self, what: str) -> None:
        self.at(what)
        self.log.append(f"{what} {self.name}")

    def add(self, result: int) -> None:
        self.at("add")
        self.results.append(result)

    def finish(self) -> None:
        self._did("finish")

    def commit(self) -> None:
        self._did("commit")

    def discard(self) -> None:
        self._did("discard")


def run(pipeline: Pipeline[int], sink: Sink, count: int = 3) -> None:
    pipeline.begin(sink)
    for result in range(count):
        pipeline.put(result)
    pipeline.end()


@pytest.fixture(autouse=True)
def _no_thread_stays() -> object:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def test_every_shard_gets_its_results_in_order_and_is_committed_once() -> None:
    log: list[str] = []
    sinks = [Sink(str(index), log) for index in range(5)]
    with Pipeline[int]() as pipeline:
        for sink in sinks:
            run(pipeline, sink)
        pipeline.drain()
        assert [line for line in log if line.startswith("commit")] == [f"commit {index}" for index in range(5)]
    assert all(sink.results == [0, 1, 2] for sink in sinks)
    assert len(log) == 15


def test_the_device_waits_for_a_slow_encoder_and_a_slow_committer() -> None:
    gate = threading.Event()
    log: list[str] = []
    put: list[int] = []

    def waiting() -> None:
        # Once the caller has been stuck for a while, the others may go on.
        if time.monotonic() > started + 0.6:
            gate.set()

    started = time.monotonic()
    with Pipeline[int](waiting) as pipeline:
        pipeline.begin(Sink("0", log, lambda what: gate.wait(30) and None if what == "add" else None))
        for result in range(MAX_QUEUED + 2):
            assert not gate.is_set()
            pipeline.put(result)
            put.append(result)
            if result == MAX_QUEUED:
                # One is with the encoder, MAX_QUEUED wait: the next call blocks until the gate opens.
                assert not gate.is_set()
                started = time.monotonic()
                break
        pipeline.put(-1)
        assert gate.is_set()
        pipeline.end()
        pipeline.drain()

        gate.clear()
        started = time.monotonic()
        for index in range(1, MAX_SHARDS + 1):
            run(pipeline, Sink(str(index), log, lambda what: gate.wait(30) and None if what == "commit" else None))
        assert not gate.is_set()
        run(pipeline, Sink("last", log))
        assert gate.is_set()
    assert log[-1] == "discard last"


@pytest.mark.parametrize("where", ["add", "finish", "commit", "discard"])
def test_a_failure_in_a_thread_reaches_the_caller(where: str) -> None:
    log: list[str] = []

    def fail(what: str) -> None:
        if what == where:
            raise ValueError(f"{where} failed")

    def work() -> None:
        with Pipeline[int]() as pipeline:
            run(pipeline, Sink("good", log))
            run(pipeline, Sink("bad", log, fail), count=20)
            for index in range(20):
                run(pipeline, Sink(str(index), log))

    with pytest.raises(ValueError, match=f"{where} failed"):
        work()
    assert "commit good" in log
    assert "commit bad" not in log or where == "discard"
    assert sum(line.startswith("commit") for line in log) < 10
    if where != "discard":
        assert "discard bad" in log


def test_leaving_with_an_error_commits_what_was_computed_and_drops_the_rest() -> None:
    log: list[str] = []

    def work() -> None:
        with Pipeline[int]() as pipeline:
            run(pipeline, Sink("whole", log, lambda _: time.sleep(0.05)))
            pipeline.begin(Sink("half", log))
            pipeline.put(0)
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        work()
    assert log == ["finish whole", "commit whole", "discard whole", "discard half"] or log == [
        "finish whole", "discard half", "commit whole", "discard whole",
    ]  # fmt: skip


def test_a_wait_ends_when_it_is_told_to() -> None:
    log: list[str] = []
    gate = threading.Event()

    def waiting() -> None:
        if len(begun) > MAX_SHARDS:
            gate.set()
            raise InterruptedError("stop")

    begun: list[str] = []

    def work() -> None:
        with Pipeline[int](waiting) as pipeline:
            for index in range(MAX_SHARDS + 1):
                begun.append(str(index))
                run(pipeline, Sink(str(index), log, lambda what: gate.wait(30) and None if what == "commit" else None))

    with pytest.raises(InterruptedError):
        work()
    assert f"discard {MAX_SHARDS}" in log
    assert f"commit {MAX_SHARDS}" not in log
    assert "commit 0" in log


def test_the_last_wait_tells_why_it_ended_where_every_shard_is_still_under_way() -> None:
    log: list[str] = []
    gate = threading.Event()
    draining = False

    def waiting() -> None:
        # As with a store that refuses the first shard while both are held.
        if draining:
            gate.set()
            raise InterruptedError("stop")

    def work() -> None:
        nonlocal draining
        with Pipeline[int](waiting) as pipeline:
            for index in range(MAX_SHARDS):
                run(pipeline, Sink(str(index), log, lambda what: gate.wait(30) and None if what == "commit" else None))
            draining = True
            pipeline.drain()

    with pytest.raises(InterruptedError, match="stop"):
        work()
    assert [line for line in log if line.startswith("commit")] == [f"commit {index}" for index in range(MAX_SHARDS)]


def test_an_abandoned_shard_is_dropped_and_the_next_goes_on() -> None:
    log: list[str] = []
    with Pipeline[int]() as pipeline:
        pipeline.begin(Sink("lost", log))
        pipeline.put(1)
        pipeline.abandon()
        run(pipeline, Sink("next", log))
    assert log == ["discard lost", "finish next", "commit next", "discard next"]
