"""The speed of a dump that has begun, from receipts whose times are set."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.manifest import ObjectRecord, ShardReceipt
from tasks.artifacts.store import open_store
from tasks.planning.measured import NEWEST, dump_progress

TOKENS, HOUR = 1000, 3600.0


class Receipts:
    """Writes one receipt after the other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.artifact = Artifact(open_store(str(folder)), "artifacts/dump_logits/logits-x-0123456789abcdef")
        self._count = 0

    def add(self, writer: str, moment: float, tokens: int = TOKENS) -> None:
        """Of a shard that `writer`, as it stands in paths, finished at `moment`."""
        name = f"train-{self._count:05d}"
        self._count += 1
        entry = ObjectRecord(name=f"{name}/c", path=f"data/{name}-{writer}/c", size=70 * tokens, sha256="0" * 64)
        metrics = {"tokens": tokens, "positions": tokens, "entries": 47 * tokens}
        self.artifact.add_shard(ShardReceipt(shard=name, write_id="w", objects=(entry,), metrics=metrics))
        file = self._folder / self.artifact.path(f"shards/{name}.json")
        os.utime(file, (moment, moment))

    def speed(self) -> float | None:
        """Tokens a second."""
        progress = dump_progress(self.artifact)
        assert progress is not None
        assert progress.bytes_per_token == 70
        return progress.tokens_per_second


@pytest.fixture
def receipts(tmp_path: Path) -> Receipts:
    return Receipts(tmp_path)


def test_a_pause_between_launches_is_no_work(receipts: Receipts) -> None:
    for place in range(4):
        receipts.add("aaaaaaaa", 10.0 * place)
    # Not a hundred times as long as the gaps in a launch, which once passed for work.
    for place in range(4):
        receipts.add("bbbbbbbb", 530.0 + 10 * place)
    assert receipts.speed() == pytest.approx(TOKENS / 10)


def test_launches_that_end_after_a_shard_or_two_say_nothing(receipts: Receipts) -> None:
    for place in range(5):
        receipts.add(f"0000000{place}", HOUR * place)
    assert receipts.speed() is None
    receipts.add("00000004", HOUR * 4 + 10)
    assert receipts.speed() is None
    receipts.add("00000004", HOUR * 4 + 20)
    assert receipts.speed() == pytest.approx(TOKENS / 10)


def test_the_last_launch_counts_once_it_has_a_speed(receipts: Receipts) -> None:
    for place in range(3):
        receipts.add("aaaaaaaa", 10.0 * place)
    for place in range(2):
        receipts.add("bbbbbbbb", HOUR + 2 * place)
    assert receipts.speed() == pytest.approx(TOKENS / 10)
    receipts.add("bbbbbbbb", HOUR + 4)
    assert receipts.speed() == pytest.approx(TOKENS / 2)


def test_launches_side_by_side_add_up(receipts: Receipts) -> None:
    for place in range(10):
        receipts.add("aaaaaaaa", 10.0 * place)
        receipts.add("bbbbbbbb", 10.0 * place + 3)
    assert receipts.speed() == pytest.approx(2 * TOKENS / 10)
    progress = dump_progress(receipts.artifact)
    assert progress is not None
    assert progress.launches == 2


@pytest.mark.parametrize("num_workers", [1, 4, NEWEST // 2])
def test_workers_that_finish_together_are_not_taken_for_one_that_hastens(receipts: Receipts, num_workers: int) -> None:
    for place in range(3):
        for rank in range(num_workers):
            receipts.add(f"r{rank}-aaaaaaaa" if rank else "aaaaaaaa", 100.0 * place + 0.01 * rank)
    assert receipts.speed() == pytest.approx(num_workers * TOKENS / 100)


def test_shards_count_by_their_tokens(receipts: Receipts) -> None:
    receipts.add("aaaaaaaa", 0, 5000)
    receipts.add("aaaaaaaa", 10, 1000)
    receipts.add("aaaaaaaa", 16, 600)
    # What was done before the first receipt took a time that nobody knows.
    assert receipts.speed() == pytest.approx(100)


def test_nothing_before_the_first_shard(tmp_path: Path) -> None:
    assert dump_progress(Receipts(tmp_path).artifact) is None
