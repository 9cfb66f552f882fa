"""Who has which accelerator of a host, with real workers and locks; the names are not of real devices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tasks.artifacts.errors import BadInputError, InterruptedRunError
from tasks.runtime.devices import VISIBLE, devices_for, visible_devices
from tasks.runtime.execute import RunContext
from tasks.runtime.launch import worker_command, worker_environment
from tasks.worker.spec import Event
from tests.runtime.conftest import Background, processes, wait_for
from tests.runtime.errand import errand


@pytest.fixture(autouse=True)
def _a_host_with_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two accelerators whose locks no other test has."""
    monkeypatch.setenv(VISIBLE, "4,5")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


def free() -> int:
    """How many accelerators nobody has."""
    for count in (2, 1):
        with devices_for(errand("free", num_processes=count, launcher="torchrun")) as devices:
            if devices is not None:
                return count
    return 0


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("0,1", ("0", "1")),
        (" 2 , GPU-0a1b", ("2", "GPU-0a1b")),
        ("MIG-GPU-0a1b/3/0", ("MIG-GPU-0a1b/3/0",)),
        ("1,-1,0", ("1",)),
        ("", ()),
        ("NoDevFiles", ()),
    ],
)
def test_visible_ones_are_read_as_cuda_reads_them(
    given: str, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VISIBLE, given)
    assert visible_devices() == names


def test_workers_side_by_side_get_different_ones(context: RunContext, announced: Path) -> None:
    steps = [errand(text, label=text, behaviour="work", announce=str(announced)) for text in ("a", "b")]
    running = [Background(step, context) for step in steps]
    wait_for(lambda: len(processes(announced)) == 2, 30, "both workers start")
    assert free() == 0
    for each in running:
        each.thread.join(30)
        assert each.error is None
    assert sorted(path.read_text() for path in announced.iterdir()) == ["4", "5"]
    assert free() == 2


def test_a_worker_waits_for_what_another_has_and_keeps_no_slot(
    context: RunContext, announced: Path, events: list[Event]
) -> None:
    both = {"launcher": "torchrun", "num_processes": 2}
    with devices_for(errand("held")) as held:
        assert held is not None
        waiting = Background(errand("a", announce=str(announced), **both), context)
        wait_for(lambda: any("waiting: other stages" in event.message for event in events), 30, "it says that it waits")
        slots = [context.slots.acquire(timeout=5) for _ in range(8)]
        assert all(slots), "all slots are free while it waits"
        for _ in slots:
            context.slots.release()
        assert not processes(announced)
    waiting.thread.join(60)
    assert waiting.error is None
    assert {path.read_text() for path in announced.iterdir()} == {"4,5"}
    assert [event.message for event in events].count("waiting: other stages have the accelerators of this host") == 1


def test_a_run_that_waits_can_be_stopped(context: RunContext, events: list[Event]) -> None:
    with devices_for(errand("held", launcher="torchrun", num_processes=2)):
        waiting = Background(errand("a"), context)
        wait_for(lambda: any("waiting: other stages" in event.message for event in events), 30, "it says that it waits")
        context.stop.set()
        waiting.thread.join(20)
    assert isinstance(waiting.error, InterruptedRunError)


def test_none_where_none_is_needed() -> None:
    with devices_for(errand("held", launcher="torchrun", num_processes=2)):
        step = errand("a", device="cpu")
        plain = replace(step, stage=replace(step.stage, accelerated=False), config=errand("a").config)
        for each in (step, plain):
            with devices_for(each) as devices:
                assert devices is not None
                assert devices.names == devices.locks == ()


def test_more_than_there_are_is_one_sentence() -> None:
    with (
        pytest.raises(BadInputError, match=r"a needs 3 accelerators on one host .* here are 2: 4, 5; lower"),
        devices_for(errand("a", label="a", launcher="deepspeed", num_processes=3)),
    ):
        pass


def test_a_launch_over_nodes_has_the_whole_host_and_names_nothing() -> None:
    nodes = errand(
        "a", launcher="torchrun", num_processes=8, num_nodes=2, rendezvous="node0", node_command=("srun", "--nodes=2")
    )
    with devices_for(nodes) as devices:
        assert devices is not None
        assert devices.names == ()
        assert free() == 0
    assert free() == 2


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two devices as NVIDIA's driver lists them."""
    for address, uuid in (("0000:c1:00.0", "GPU-2c3d4e5f"), ("0000:41:00.0", "GPU-0a1b2c3d")):
        file = tmp_path / "gpus" / address / "information"
        file.parent.mkdir(parents=True)
        file.write_text(f"Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 117\nGPU UUID: \t {uuid}\n")
    monkeypatch.setattr("tasks.runtime.devices.DRIVER", tmp_path / "gpus")


@pytest.mark.usefixtures("driver")
def test_one_device_has_one_lock_however_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "1")
    with devices_for(errand("a")) as first:
        assert first is not None
        assert first.names == ("1",)
        for other in ("GPU-2c3d4e5f", "GPU-2c3d"):
            monkeypatch.setenv(VISIBLE, other)
            with devices_for(errand("b")) as second:
                assert second is None
        monkeypatch.setenv(VISIBLE, "0")
        with devices_for(errand("b")) as second:
            assert second is not None


@pytest.mark.usefixtures("driver")
def test_deepspeed_gets_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its runner takes no other names, and would compute on the first devices of the host."""
    monkeypatch.setenv(VISIBLE, "GPU-2c3d4e5f")
    with devices_for(errand("a", launcher="deepspeed")) as devices:
        assert devices is not None
        assert devices.names == ("1",)
    with devices_for(errand("a", launcher="torchrun")) as devices:
        assert devices is not None
        assert devices.names == ("GPU-2c3d4e5f",)
    monkeypatch.setenv(VISIBLE, "MIG-0a1b")
    with (
        pytest.raises(BadInputError, match="names MIG-0a1b, and deepspeed's launcher takes devices by number; set"),
        devices_for(errand("a", launcher="deepspeed")),
    ):
        pass
    with devices_for(errand("a", launcher="torchrun")) as devices:
        assert devices is not None, "nothing is held after a refusal"


def test_jobs_of_slurm_number_devices_that_are_their_own_from_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with devices_for(errand("a", launcher="torchrun", num_processes=2)):
        assert free() == 0
        monkeypatch.setenv("SLURM_JOB_ID", "18")
        assert free() == 2


def test_each_launcher_is_told_which() -> None:
    spec, runtime = Path("/scratch/spec.json"), errand("a", launcher="deepspeed", num_processes=2).config.runtime
    command = worker_command("m", spec, runtime, ("4", "5"))
    assert command[3:5] == ["--include", "localhost:4,5"]
    assert "--num_gpus" not in command
    assert worker_environment(runtime, ("4", "5"))[VISIBLE] == "4,5"
    assert worker_environment(errand("a", device="cpu").config.runtime)[VISIBLE] == ""
