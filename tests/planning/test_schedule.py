"""The order of stages: the critical path by hand, and no schedule shorter than it can be."""

from __future__ import annotations

import random

import pytest

from tasks.planning.schedule import schedule

SECONDS = {"corpus": 1.0, "dump-a": 10.0, "dump-b": 4.0, "train-a": 2.0, "train-b": 3.0, "fuse": 1.0}
NEEDS = {
    "corpus": [],
    "dump-a": ["corpus"],
    "dump-b": ["corpus"],
    "train-a": ["dump-a"],
    "train-b": ["dump-b"],
    "fuse": ["train-a", "train-b", "corpus"],
}


def test_branches_run_side_by_side() -> None:
    planned = schedule(SECONDS, NEEDS, 2)
    assert planned.length == 14
    assert planned.critical == ("corpus", "dump-a", "train-a", "fuse")
    assert planned.start["train-b"] == 5
    assert planned.most({"corpus": 0, "dump-a": 8, "dump-b": 4, "train-a": 8, "train-b": 2, "fuse": 0}) == 12


def test_what_is_kept_adds_up_and_what_passes_does_not() -> None:
    planned = schedule(SECONDS, NEEDS, 2)
    # At second 5 both branches are at work, dump-b has ended, and 1 + 2 + 4 are kept.
    kept = {"corpus": 1.0, "dump-a": 2.0, "train-b": 4.0, "fuse": 50.0}
    assert planned.most({"dump-a": 100.0, "train-b": 30.0}, kept) == 137
    assert planned.most({"train-a": 30.0}, kept) == 57, "the end: nothing passes any more"
    assert planned.most({}, {}) == 0


def test_one_slot_is_one_after_the_other() -> None:
    planned = schedule(SECONDS, NEEDS, 1)
    assert planned.length == sum(SECONDS.values())
    assert len(planned.critical) == len(SECONDS)


def test_dumps_of_a_whole_node_wait_for_each_other_unless_there_are_two() -> None:
    nodes = {"dump-a": 1.0, "dump-b": 1.0, "train-a": 1.0, "train-b": 1.0}
    one, two = (schedule(SECONDS, NEEDS, 4, nodes, count) for count in (1, 2))
    assert one.length == sum(SECONDS.values())
    assert one.start["dump-b"] == one.end["dump-a"]
    assert one.most(nodes | {"corpus": 0, "fuse": 0}) == 1
    assert two.length == schedule(SECONDS, NEEDS, 4).length == 14


def test_a_small_stage_goes_beside_one_that_waits_for_a_node() -> None:
    seconds = {"dump": 10.0, "train": 5.0, "judge": 1.0}
    planned = schedule(seconds, dict.fromkeys(seconds, ()), 3, {"dump": 0.5, "train": 1.0, "judge": 0.125}, 1)
    assert planned.start == {"dump": 0, "judge": 0, "train": 10}
    # One that needs more than there is takes all of it.
    assert schedule(seconds, dict.fromkeys(seconds, ()), 3, {"dump": 2.0, "train": 1.0}, 1).length == 15


def test_nothing_takes_no_time() -> None:
    assert schedule({}, {}, 2).length == 0
    planned = schedule({"a": 0.0}, {"a": []}, 1)
    assert planned.length == planned.most({"a": 8}) == 0


@pytest.mark.parametrize("seed", range(20))
def test_any_graph_keeps_its_order_its_slots_and_its_bounds(seed: int) -> None:
    draw = random.Random(seed)
    names = [str(number) for number in range(draw.randint(1, 14))]
    seconds = {name: draw.choice([0.0, 1.0, 2.5, 7.0]) for name in names}
    needs = {name: draw.sample(names[:index], draw.randint(0, min(3, index))) for index, name in enumerate(names)}
    slots = draw.randint(1, 4)
    nodes = {name: draw.choice([0, 1 / 72, 0.5, 1.0]) for name in names}
    num_nodes = draw.choice([1, 2, 3])
    planned = schedule(seconds, needs, slots, nodes, num_nodes)
    assert planned.most(nodes) <= num_nodes + 1e-6
    way: dict[str, float] = {}
    for name in names:
        assert planned.end[name] == planned.start[name] + seconds[name]
        assert all(planned.end[source] <= planned.start[name] for source in needs[name])
        way[name] = seconds[name] + max((way[source] for source in needs[name]), default=0.0)
    assert planned.most(dict.fromkeys(names, 1.0)) <= slots
    assert max(max(way.values()), sum(seconds.values()) / slots) <= planned.length <= sum(seconds.values())
    # Each stage of the critical path starts when the one before it ends; together they are the whole time.
    assert sum(seconds[name] for name in planned.critical) == pytest.approx(planned.length)
