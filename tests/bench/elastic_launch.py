"""One launch of a distillation, watched from outside: what its events say, one rank killed, a stop asked for."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.artifacts.artifact import Artifact
from tasks.distill.stage import STAGE
from tasks.runtime.launch import launch
from tasks.training.settings import TrainingRuntime
from tasks.worker.job import EXIT_PREEMPTED, STOP_FILE
from tests.bench.jobs import JobInputs

GOES_ON = "goes on after step "
POLL_SECONDS = 0.02
MOST_SECONDS = 180
"""A launch that takes longer hangs."""


@dataclass(frozen=True)
class Kill:
    """SIGKILL to one rank, so many seconds after the launch has begun to work."""

    rank: int
    after: float


@dataclass
class Launch:
    """What happened to one launch."""

    resumed: int | None = None
    """Step of the checkpoint that it went on from."""
    began_anew: bool = False
    steps: int = 0
    """The last one that it reported."""
    work_seconds: float = 0
    """From the first judgement or step, or a checkpoint's resume, to its end."""
    killed: bool = False
    seconds_to_end: float = 0
    """From the kill until all its processes had ended."""
    started: float | None = field(default=None, repr=False)

    def note(self, event: dict[str, Any]) -> None:
        """Takes in one event. Metrics of steps before a checkpoint are said again when it is resumed: no work yet."""
        self.steps = max(self.steps, event.get("values", {}).get("step", 0))
        message = event.get("message", "")
        if message.startswith(GOES_ON):
            self.resumed = int(message.removeprefix(GOES_ON).split()[0])
        elif event["kind"] != "progress":
            return
        elif self.started is None:
            self.began_anew = True
        self.started = self.started or time.monotonic()


def run_launch(
    inputs: JobInputs,
    artifact: Artifact,
    recipe: dict[str, Any],
    runtime: TrainingRuntime,
    *,
    kill: Kill | None = None,
    stop_after: int | None = None,
) -> Launch:
    """Launches the worker through the runtime's own launcher and waits for its end.

    Args:
        kill: unless the launch has ended by then.
        stop_after: the step after which it is asked to save and leave.

    Raises:
        RuntimeError: it ended with an error that nobody caused, hangs, or left a process behind.
    """
    spec = inputs.spec(recipe, runtime.model_dump(mode="json"), artifact)
    scratch = Path(spec.scratch)
    scratch.mkdir(parents=True)
    file = scratch / "spec.json"
    file.write_text(spec.model_dump_json())
    process = launch(STAGE.worker, file, runtime)
    found = Launch()
    begun = time.monotonic()
    killed_at = 0.0
    lines_read = 0

    def poll() -> None:
        nonlocal killed_at, lines_read
        events = scratch / "events.jsonl"
        lines = events.read_bytes().split(b"\n")[:-1] if events.is_file() else []
        for line in lines[lines_read:]:
            found.note(json.loads(line))
        lines_read = len(lines)
        if time.monotonic() - begun > MOST_SECONDS:
            raise RuntimeError(f"{artifact.directory} hangs: {process.log_tail()[-400:]}")
        if stop_after is not None and found.steps >= stop_after:
            (scratch / STOP_FILE).touch()
        if kill and found.started and not found.killed and time.monotonic() >= found.started + kill.after:
            for pid in _processes(file, kill.rank):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    found.killed = True
                    killed_at = time.monotonic()

    try:
        code = process.wait(poll, POLL_SECONDS)
        ended = time.monotonic()
        left = _processes(file)
    finally:
        process.kill()
    if left:
        raise RuntimeError(f"{len(left)} processes of {artifact.directory} outlive their launcher")
    saved = stop_after is not None and (process.end() or (0,))[0] == EXIT_PREEMPTED
    if code and not found.killed and not saved:
        said = " ".join(line.strip() for line in process.log_tail().split("\n")[-4:])
        raise RuntimeError(f"{artifact.directory} ended with {code}: {said}")
    found.work_seconds = ended - found.started if found.started else 0
    found.seconds_to_end = ended - killed_at if found.killed else 0
    return found


def _processes(spec: Path, rank: int | None = None) -> list[int]:
    """The live processes started with this spec; only the one with this rank, if one is named."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # A process that has ended and is not yet waited for has no command line any more.
            ours = str(spec).encode() in (entry / "cmdline").read_bytes()
            if ours and (rank is None or f"RANK={rank}".encode() in (entry / "environ").read_bytes().split(b"\0")):
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found
