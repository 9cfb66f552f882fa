"""What is kept and shown of a training while it runs.

training_log.jsonl                   in the artifact and its digest: losses, gradient norm, rate, held-out results
logs/<attempt>/performance.jsonl     beside it, counting for nothing: speed, utilisation, data wait, padding
logs/<attempt>/diverged.jsonl        there, of a training that diverged: the documents of its last step
logs/<attempt>/tensorboard/…         both as TensorBoard event files, live below the scratch root
events.jsonl                         progress and metrics for terminal and dashboard
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.artifacts.errors import StoreError
from tasks.artifacts.fingerprint import sha256_hex
from tasks.training.engine import StepResult
from tasks.training.event_files import EventFiles
from tasks.training.performance import StepWork, Throughput
from tasks.worker.job import Job

LOG_NAME = "training_log.jsonl"
PERFORMANCE_NAME = "performance.jsonl"
DIVERGED_NAME = "diverged.jsonl"
_REPORT_SECONDS = 1.0
"""Distance of two progress events."""


class TrainingLog:
    """The lines of training_log.jsonl: a function of the training alone, whatever happens to its launches.

    A line of training holds {step, loss, <parts>, grad_norm, lr}: means per target token since the line before, the
    norm's mean per step, the last rate. Where only some rows have a teacher there is also `taught`, the part of the
    targets that has one: a part of the loss over it is the mean of these alone. A held-out result joins the line of its
    step or is a line of its own.
    """

    def __init__(self, parts: Sequence[str], num_steps: int, log_every_steps: int) -> None:
        """`parts`: the names in StepResult.parts that are logged, those with a weight."""
        self._parts = tuple(parts)
        self._num_steps = num_steps
        self._every = log_every_steps
        self.lines: list[dict[str, float]] = []
        self._window = self._empty()

    def _empty(self) -> dict[str, float]:
        return dict.fromkeys(("steps", "targets", "taught", "loss", *self._parts, "grad_norm"), 0)

    def step(
        self, step: int, result: StepResult, rate: float, num_targets: int, num_taught: int | None = None
    ) -> dict[str, float] | None:
        """Takes in step 1 ≤ `step` ≤ num_steps; returns the line that it completes, if it does.

        num_taught: of the targets, where only some have a teacher.
        """
        window = self._window
        window["steps"] += 1
        window["targets"] += num_targets
        window["taught"] += num_taught or 0
        window["grad_norm"] += result.grad_norm
        for name, value in self.values(result).items():
            window[name] += value * num_targets
        if step % self._every and step != self._num_steps:
            return None
        means = {name: window[name] / max(1, window["targets"]) for name in ("loss", *self._parts)}
        if num_taught is not None:
            means["taught"] = window["taught"] / max(1, window["targets"])
        line = {"step": step, **means, "grad_norm": window["grad_norm"] / window["steps"], "lr": rate}
        self._window = self._empty()
        self.lines.append(line)
        return line

    def heldout(self, step: int, values: Mapping[str, float]) -> None:
        """Takes in results on the held-out split after `step` steps (0: before the first), as heldout_<name>."""
        named = {f"heldout_{name}": value for name, value in values.items()}
        if self.lines and self.lines[-1]["step"] == step:
            self.lines[-1].update(named)
        else:
            self.lines.append({"step": step, **named})

    def is_judged(self, step: int) -> bool:
        """Whether there is a held-out result after `step` steps, the last ones taken in."""
        return bool(self.lines) and self.lines[-1]["step"] == step and any("heldout" in name for name in self.lines[-1])

    def values(self, result: StepResult) -> dict[str, float]:
        """Loss and logged parts of a step."""
        return {"loss": result.loss, **{name: result.parts[name] for name in self._parts}}

    def text(self) -> str:
        """The file's content."""
        return "".join(json.dumps(line, sort_keys=True) + "\n" for line in self.lines)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold; JSON."""
        return {"lines": [dict(line) for line in self.lines], "window": dict(self._window)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` returned."""
        self.lines = [dict(line) for line in state["lines"]]
        self._window = {**self._empty(), **state["window"]}


class TrainingRecord:
    """Feeds the log, the performance lines, the event files and the dashboard from one call a step.

    Every process has one, so that all know the state; only the main process writes. Construct it, `restore` it where
    there is a checkpoint, then `step` and `heldout` in the order of the training, `upload` at every checkpoint and at
    the end, `close`.
    """

    def __init__(
        self, job: Job, *, parts: Sequence[str], num_steps: int, log_every_steps: int, throughput: Throughput
    ) -> None:
        self.log = TrainingLog(parts, num_steps, log_every_steps)
        self.throughput = throughput
        self._job = job
        self._num_steps = num_steps
        self._events: EventFiles | None = None
        self._first: tuple[float, int] | None = None
        self._next_report = 0.0
        if job.rank == 0:
            root = Path(job.spec.input_cache).parent / "tensorboard"
            # Trainings of one key into two stores of a host would otherwise void each other's curves.
            store = sha256_hex(job.spec.store.encode())[:8]
            self._events = EventFiles(root, f"{job.spec.label}-{job.spec.key[:8]}-{store}")

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold; JSON."""
        return self.log.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint: the curves so far are written again, and told to a dashboard that is new."""
        self.log.restore(state)
        for line in self.log.lines:
            self._curves(line)
            self._job.metric(**line)

    def step(self, step: int, result: StepResult, rate: float, work: StepWork) -> None:
        """Takes in a finished step, 1 ≤ `step` ≤ num_steps."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now - work.seconds, step - 1)
        self.throughput.step(work)
        line = self.log.step(step, result, rate, work.num_targets, work.num_taught)
        if line is not None:
            self._curves(line)
            self._performance(step, now)
        values = {**self.log.values(result), "grad_norm": result.grad_norm, "lr": rate}
        recent = self.throughput.recent()
        shown = {name: recent[name] for name in ("tokens_per_second", "mfu", "data_wait") if name in recent}
        self._job.metric(step=step, **values, **shown)
        if step == self._num_steps or now >= self._next_report:
            self._next_report = now + _REPORT_SECONDS
            start, before = self._first
            # Judgements and checkpoints count: they are in the way of the steps to come, too.
            left = (now - start) / (step - before) * (self._num_steps - step)
            self._job.progress(step, self._num_steps, "steps", loss=result.loss, seconds_left=left, **shown)

    def heldout(self, step: int, values: Mapping[str, float]) -> None:
        """Takes in results on the held-out split after `step` steps, such as {"kl": 0.1, "ce": 2.0}."""
        self.log.heldout(step, values)
        named = {f"heldout_{name}": value for name, value in values.items()}
        self._curves({"step": step, **named})
        self._job.metric(step=step, **named)

    def upload(self) -> None:
        """Puts performance lines and event files beside the artifact, over what this launch put there before.

        For people: where the store refuses them, the training goes on. Call it from the thread that trains.
        """
        if self._events is None:
            return
        base = f"logs/{self._job.spec.attempt}"
        files = [(file, f"{base}/tensorboard/{file.name}") for file in self._events.files()]
        for name in (PERFORMANCE_NAME, DIVERGED_NAME):
            if (file := self._job.scratch / name).is_file():
                files.append((file, f"{base}/{name}"))
        try:
            for file, name in files:
                self._job.store.upload(file, self._job.artifact.path(name))
        except StoreError as error:
            self._job.log(f"the curves could not be stored: {error}")

    def diverged(self, lines: str) -> str:
        """Keeps what is known of the step that ends the training, for `upload`; where that will be."""
        if self._events is not None:
            (self._job.scratch / DIVERGED_NAME).write_text(lines, encoding="utf-8")
        return f"{self._job.artifact.uri}/logs/{self._job.spec.attempt}/{DIVERGED_NAME}"

    def close(self) -> None:
        """Uploads a last time and ends what writes."""
        if self._events is not None:
            self.upload()
            self._events.close()

    def _performance(self, step: int, now: float) -> None:
        if self._events is None or self._first is None:
            return
        rates = self.throughput.line()
        line = {"step": step, "seconds": round(now - self._first[0], 3), **rates}
        with (self._job.scratch / PERFORMANCE_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._events.add(step, {f"performance/{name}": value for name, value in rates.items()})

    def _curves(self, line: Mapping[str, float]) -> None:
        if self._events is None:
            return
        values = {name: value for name, value in line.items() if name != "step"}
        self._events.add(int(line["step"]), {_curve(name): value for name, value in values.items()})


def _curve(name: str) -> str:
    group, _, rest = name.partition("_")
    return f"heldout/{rest}" if group == "heldout" else f"train/{name}"
