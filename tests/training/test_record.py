"""The training log is a function of the training; speed and curves are kept beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import sha256_hex
from tasks.artifacts.store import Store
from tasks.planning.flops import ModelShape, training_flops
from tasks.training import performance
from tasks.training.engine import StepResult
from tasks.training.event_files import KEPT_RUNS, EventFiles
from tasks.training.performance import StepWork, Throughput, throughput_of
from tasks.training.record import TrainingLog, TrainingRecord
from tasks.worker.job import Job
from tasks.worker.spec import WorkerSpec
from tests.training.parts import make_model

SHAPE = ModelShape(layer_weights=1000, head_weights=500, attention_width=32)
WORK = StepWork(num_tokens=80, num_targets=60, num_padded=20, num_pairs=400, seconds=0.5, wait_seconds=0.1)
STEPS = 10


def result(step: int) -> StepResult:
    kl, ce = 1 / step, 2 + math.sin(step) / 3
    return StepResult(loss=0.9 * kl + 0.1 * ce, parts={"forward_kl": kl, "ce": ce, "jsd": 0.0}, grad_norm=0.1 * step)


@pytest.fixture
def job_of(tmp_path: Path, store: Store) -> Callable[[str], Job]:
    """job_of(attempt): a launch of one and the same training."""

    def make(attempt: str) -> Job:
        return Job(
            WorkerSpec(
                stage="distill",
                label="distill-a",
                key="k" * 64,
                attempt=attempt,
                store=store.uri,
                directory="artifacts/distill/a",
                scratch=str(tmp_path / "scratch" / attempt),
                input_cache=str(tmp_path / "scratch" / "inputs"),
                recipe={},
                runtime={},
                inputs={},
            )
        )

    return make


def record_of(job: Job) -> TrainingRecord:
    return TrainingRecord(
        job, parts=("forward_kl", "ce"), num_steps=STEPS, log_every_steps=4, throughput=Throughput(SHAPE, 1e6)
    )


def run(record: TrainingRecord, first: int, last: int) -> None:
    for step in range(first, last + 1):
        record.step(step, result(step), 0.1 / step, WORK)
        if step in (5, 8):
            record.heldout(step, {"kl": 1 / step, "ce": 2.0})


def curve(directory: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(directory))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def events_of(job: Job, kind: str) -> list[dict[str, Any]]:
    lines = (job.scratch / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def test_lines_are_means_per_target_since_the_line_before() -> None:
    log = TrainingLog(("forward_kl",), STEPS, 4)
    log.heldout(0, {"kl": 2.0})
    targets = [30, 10, 0, 20, 5, 5, 5, 5, 1, 3]
    for step in range(1, STEPS + 1):
        log.step(step, result(step), 0.1 / step, targets[step - 1])
    log.heldout(10, {"kl": 0.5})
    start, line, _, last = log.lines
    assert start == {"step": 0, "heldout_kl": 2.0}
    assert line.keys() == {"step", "loss", "forward_kl", "grad_norm", "lr"}, "parts without a weight are not logged"
    assert line["forward_kl"] == pytest.approx((30 / 1 + 10 / 2 + 20 / 4) / 60)
    assert line["grad_norm"] == pytest.approx(0.25)
    assert (line["step"], line["lr"]) == (4, 0.025)
    assert (last["step"], last["heldout_kl"]) == (10, 0.5)
    assert last["forward_kl"] == pytest.approx((1 / 9 + 3 / 10) / 4)
    assert [json.loads(text) for text in log.text().splitlines()] == log.lines
    assert log.is_judged(10)
    assert not log.is_judged(8)


def test_the_part_of_the_targets_with_a_teacher_is_said_where_not_all_have_one() -> None:
    log = TrainingLog(("forward_kl",), 4, 2)
    for step, taught in ((1, 3), (2, 7)):
        line = log.step(step, result(step), 0.1, 20, taught)
    assert line is not None
    assert line["taught"] == 0.25
    restored = TrainingLog(("forward_kl",), 4, 2)
    log.step(3, result(3), 0.1, 20, 1)
    restored.restore(json.loads(json.dumps(log.state())))
    line = restored.step(4, result(4), 0.1, 20, 3)
    assert line is not None
    assert line["taught"] == 0.1


def test_a_stretch_without_targets_is_no_division_by_zero() -> None:
    log = TrainingLog(("ce",), 1, 1)
    line = log.step(1, StepResult(0.0, {"ce": 0.0}, 0.0), 0.1, 0)
    assert line == {"step": 1, "loss": 0.0, "ce": 0.0, "grad_norm": 0.0, "lr": 0.1}


def test_a_killed_launch_leaves_no_trace_in_log_and_curves(tmp_path: Path, job_of: Callable[[str], Job]) -> None:
    undisturbed = record_of(job_of("a" * 8))
    run(undisturbed, 1, STEPS)
    undisturbed.close()

    killed = record_of(job_of("b" * 8))
    run(killed, 1, 6)
    state = json.dumps(killed.state())
    run(killed, 7, 9)
    killed.upload()

    job = job_of("c" * 8)
    resumed = record_of(job)
    resumed.restore(json.loads(state))
    run(resumed, 7, STEPS)
    resumed.close()
    assert resumed.log.text() == undisturbed.log.text()
    assert resumed.state() == undisturbed.state()

    # Below the scratch root stand the files of all three; only the last one's points count.
    expected = {line["step"]: line for line in resumed.log.lines}
    watched = tmp_path / "scratch" / "tensorboard" / f"distill-a-kkkkkkkk-{sha256_hex(job.store.uri.encode())[:8]}"
    stored = Path(job.store.uri.removeprefix("file://")) / "artifacts/distill/a/logs" / job.spec.attempt
    for directory in (watched, stored / "tensorboard"):
        for tag, name in (("train/loss", "loss"), ("train/forward_kl", "forward_kl"), ("heldout/kl", "heldout_kl")):
            points = curve(directory, tag)
            wanted = [(step, line[name]) for step, line in expected.items() if name in line]
            assert points == [(step, pytest.approx(value)) for step, value in wanted], tag
    assert [step for step, _ in curve(stored / "tensorboard", "performance/mfu")] == [8, 10]
    lines = [json.loads(line) for line in (stored / "performance.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [8, 10]
    # A dashboard that saw nothing of the first launch is told of its lines.
    assert [event["values"]["step"] for event in events_of(job, "metric")] == [4, 5, 7, 8, 8, 9, 10]
    assert events_of(job, "metric")[0]["values"]["forward_kl"] == expected[4]["forward_kl"]
    progress = events_of(job, "progress")[-1]
    assert (progress["done"], progress["values"]["seconds_left"]) == (10, 0)
    assert progress["values"]["tokens_per_second"] == 160


def test_only_the_main_process_writes(job_of: Callable[[str], Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    job = job_of("d" * 8)
    record = record_of(job)
    run(record, 1, STEPS)
    record.close()
    assert len(record.log.lines) == 4
    assert list(job.scratch.iterdir()) == []
    assert list(job.store.list("artifacts")) == []


def test_rates() -> None:
    throughput = Throughput(SHAPE, 1e6)
    assert throughput.line() == {}
    for seconds in (0.5, 1.5):
        throughput.step(StepWork(80, 60, 20, 400, seconds=seconds, wait_seconds=0.1))
    flops = training_flops(SHAPE, num_tokens=80, num_targets=60, num_pairs=400)
    assert throughput.line() == pytest.approx(
        {
            "tokens_per_second": 80,
            "targets_per_second": 60,
            "seconds_per_step": 1,
            "data_wait": 0.1,
            "padding": 0.2,
            "mfu": flops / 1e6,
        }
    )
    throughput.step(StepWork(80, 60, 20, 400, seconds=1, wait_seconds=1, learning="embedding"))
    assert throughput.line()["mfu"] == pytest.approx((flops - 2 * 1000 * 80) / 1e6), "frozen matrices get no gradient"
    throughput.step(StepWork(80, 60, 20, 400, seconds=1, wait_seconds=1, learning="layers"))
    head = 2 * SHAPE.head_weights * 60
    assert throughput.line()["mfu"] == pytest.approx((flops - head) / 1e6), "nor does a frozen head"
    assert throughput.total()["data_wait"] == pytest.approx(2.2 / 4)


def test_unknown_hardware_costs_the_utilisation_and_a_misspelt_one_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(performance, "emulated_bfloat16", lambda: "slower")
    settings: dict[str, Any] = {"dtype": torch.bfloat16, "world_size": 2, "say": said.append}
    config = make_model().config.to_dict()
    throughput = throughput_of(config, device=torch.device("meta"), hardware=None, **settings)
    throughput.step(WORK)
    assert "mfu" not in throughput.total()
    assert "runtime.hardware" in said.pop()
    throughput = throughput_of(config, device=torch.device("cpu"), hardware="h200", **settings)
    throughput.step(WORK)
    assert throughput.total()["mfu"] > 0
    assert said.pop() == "FLOPs utilisation is against h200 in bfloat16: 2 × 989.4 TFLOP/s"
    assert said.pop().startswith("slower; set recipe.precision")
    throughput_of({**config, "model_type": "rwkv"}, device=torch.device("cpu"), hardware=None, **settings)
    assert "'rwkv'" in said.pop()
    with pytest.raises(BadInputError, match="h300"):
        throughput_of(config, device=torch.device("cpu"), hardware="h300", **settings)


def test_old_runs_make_room(tmp_path: Path) -> None:
    for index in range(KEPT_RUNS + 2):
        run_directory = tmp_path / f"run-{index}"
        run_directory.mkdir()
        (run_directory / "events.out.tfevents.1").touch()
    running = tmp_path / "run-0"
    (running / "events.out.tfevents.2").touch()
    EventFiles(tmp_path, "new").close()
    assert len(list(tmp_path.iterdir())) == KEPT_RUNS
    assert running.is_dir(), "what was written last stays, however early it began"
