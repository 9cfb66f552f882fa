"""A run of micro that is going to be killed, and a view of what it leaves on the machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests.e2e.micro_run import environment

POLL_SECONDS = 0.02
_STEP = re.compile(r"--spec (\S+/[0-9a-f]{8}-(?P<label>[\w.-]+)-[0-9a-f]{16}/[0-9a-f]{8})/spec\.json")
"""In a worker's command line: the folder of a launch, which bears the step's label."""


def processes_in(folder: Path) -> dict[int, str]:
    """Command lines of all processes that work in `folder` or name it: all that a run there has started, by number."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            here = (entry / "cwd").readlink().is_relative_to(folder) or str(folder) in command
        except OSError:
            continue
        if here and state not in "ZX":
            found[int(entry.name)] = command
    return found


def is_worker(command: str) -> bool:
    return ".worker " in command and "--spec" in command


def end_all(folder: Path) -> None:
    """kill -9 of everything that works in `folder` or names it."""
    for pid in processes_in(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Victim:
    """A process group of its own, with what it printed in a file."""

    def __init__(
        self,
        command: Sequence[str | Path],
        folder: Path,
        name: str,
        more: Mapping[str, str] | None = None,
        log_folder: Path | None = None,
    ) -> None:
        """Starts it in `folder`, with `more` variables; its output goes there too unless there is a `log_folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.log = (log_folder or folder) / f"{name}.txt"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment(more),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self) -> str:
        """What it printed so far."""
        return self.log.read_text(errors="replace")

    def workers(self, label: str) -> dict[int, str]:
        """Command lines of the processes of one step in its folder, keepers included, by number."""
        found = processes_in(self.folder)
        return {pid: line for pid, line in found.items() if (step := _STEP.search(line)) and step["label"] == label}

    def events(self, label: str) -> list[str]:
        """What the launches of one step that are at work have told so far, a line each."""
        folders = {self.folder / step[1] for line in self.workers(label).values() if (step := _STEP.search(line))}
        files = [file for folder in folders if (file := folder / "events.jsonl").exists()]
        return [line for file in files for line in file.read_text().splitlines()]

    def labels(self) -> list[str]:
        """Of the steps that have a process now."""
        found = (_STEP.search(line) for line in processes_in(self.folder).values())
        return sorted({step["label"] for step in found if step is not None})

    def signal_all(self, number: signal.Signals) -> None:
        """Sends it to every process in its folder."""
        for pid in processes_in(self.folder):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait_until(self, condition: Callable[[], object], what: str, seconds: float = 240) -> None:
        """Returns when `condition()` is true; fails if the run ends before that."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"the run ended before {what}:\n{self.said()[-3000:]}"
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}\n{self.said()[-3000:]}"
            time.sleep(POLL_SECONDS)

    def kill(self) -> list[str]:
        """kill -9 of the flow's process alone; the labels of the steps that it had a process for."""
        # Stopped first: it launches nothing between the look and the kill.
        self.process.send_signal(signal.SIGSTOP)
        working = self.labels()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        return working

    def interrupt(self) -> None:
        """What a terminal does at Ctrl-C: SIGINT to the whole group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def require_nothing_left(self, killed_at: float) -> None:
        """Fails if a worker outlives the kill by 5 s or anything else by 30 s. `killed_at` is by time.monotonic()."""
        while workers := [command for command in processes_in(self.folder).values() if is_worker(command)]:
            assert time.monotonic() < killed_at + 5, f"5 s after the kill there still runs {workers}"
            time.sleep(POLL_SECONDS)
        while left := list(processes_in(self.folder).values()):
            assert time.monotonic() < killed_at + 30, f"30 s after the kill there still runs {left}"
            time.sleep(POLL_SECONDS)
