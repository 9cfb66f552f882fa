"""Processes that outlive the command which started them, and their end: exactly these and what they started.

Each is known by number, start time and boot, so that a number given away again is nobody's. All of them, and whatever
they start, carry one variable in their environment: so a flow run in a session of its own is found, too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tasks.artifacts.frozen import Frozen
from tasks.artifacts.process_identity import boot_id, process_started
from tasks.runtime.launch_folder import grace_of

MARK = "MEDIUS_STACK"
"""In the environment of everything that belongs to a stack; the value is the stack's own."""
_RUN = "PREFECT__FLOW_RUN_ID"
"""In the environment of a flow run's process and of all that it starts."""
_POLL_SECONDS = 0.2
_KILL_SECONDS = 10
_AFTER_GRACE_SECONDS = 30
"""For what a run does when its stages have saved: logs, its record, its last word to Prefect's server."""


class StackProcess(Frozen):
    """A process that was started, whether it lives or not."""

    name: str
    pid: int
    started: str
    """Clock ticks since the boot."""
    boot: str
    log: str

    def alive(self) -> bool:
        """Whether this very process is still there."""
        return self.boot == boot_id() and process_started(self.pid) == self.started


def start(
    name: str, command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path
) -> tuple[StackProcess, subprocess.Popen[bytes]]:
    """Starts a process in a session of its own, with its output at the end of `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # One that has ended by now has no start time any more, and is as dead without.
    started = process_started(process.pid) or ""
    return StackProcess(name=name, pid=process.pid, started=started, boot=boot_id(), log=str(log)), process


def marked(token: str) -> dict[int, dict[str, str]]:
    """Environment by number of every living process that carries the mark of a stack."""
    return _with_variable(f"{MARK}={token}".encode())


def living_runs() -> set[str]:
    """Ids of the flow runs that have a living process on this host, as far as this user can see."""
    return {environment[_RUN] for environment in _with_variable(f"{_RUN}=".encode()).values()}


def _with_variable(start: bytes) -> dict[int, dict[str, str]]:
    """Environment by number of every living process with a variable that begins so."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        # Processes of other users cannot be read; those that end meanwhile need not be.
        with suppress(OSError):
            variables = (folder / "environ").read_bytes().split(b"\0")
            if (
                any(variable.startswith(start) for variable in variables)
                and process_started(int(folder.name)) is not None
            ):
                pairs = (variable.decode(errors="replace").partition("=") for variable in variables)
                found[int(folder.name)] = {name: value for name, _, value in pairs}
    return found


def end_work(token: str, workers: set[int], stays: set[int], seconds: float) -> int:
    """Ends everything of a stack but the trees below `stays`: flow runs are asked, and what they started follows them.

    Prefect's workers are killed first: one that is asked kills its runs, which outlive one that is killed. What is left
    after `seconds` is killed, or where stages may take longer to save what they have, after the longest of that.

    Returns:
        The number of flow runs that were asked.
    """
    asked: set[int] = set()
    runs: set[str] = set()
    seen: dict[int, str | None] = {}
    until: dict[int, float] = {}

    def all_ended() -> bool:
        present = marked(token)
        for root in stays:
            for pid in _tree(present, root):
                del present[pid]
        seen.update((pid, process_started(pid)) for pid in present.keys() - seen.keys())
        _send(workers & present.keys(), signal.SIGKILL)
        heads = {pid for pid in present if _RUN in present[pid] and _RUN not in present.get(_parent(pid), {})}
        # A worker that saves its last checkpoint outlives its run's process, and is a head then.
        runs.update(present[pid][_RUN] for pid in heads)
        fresh = heads - asked
        asked.update(fresh)
        for pid in present.keys() - until.keys():
            if grace := grace_of(_command(pid)):
                until[pid] = time.monotonic() + grace + _AFTER_GRACE_SECONDS
        _send(fresh, signal.SIGTERM)
        if time.monotonic() >= late():
            _send(present, signal.SIGKILL)
        return not present and _ended(seen)

    deadline = time.monotonic() + seconds

    def late() -> float:
        return max([deadline, *until.values()])

    while not all_ended() and time.monotonic() < late() + _KILL_SECONDS:
        time.sleep(_POLL_SECONDS)
    return len(runs)


def end_tree(token: str, root: int, seconds: float) -> None:
    """Asks one process to end, and kills what it has left of its own after `seconds`."""
    tree = {pid: process_started(pid) for pid in _tree(marked(token), root) | {root}}
    _send([root], signal.SIGTERM)
    if not wait_until(lambda: _ended(tree), seconds):
        _send(tree.keys() & marked(token).keys(), signal.SIGKILL)
        wait_until(lambda: _ended(tree), _KILL_SECONDS)


def _ended(processes: Mapping[int, str | None]) -> bool:
    """Whether none of these, by number and start time, is there any more.

    The mark does not tell: a process that gives its memory back has no environment left, and is still there.
    """
    return all(started is None or process_started(pid) != started for pid, started in processes.items())


def _tree(present: Iterable[int], root: int) -> set[int]:
    """Those of `present` that are `root` or descend from it."""
    parents = {pid: _parent(pid) for pid in present}
    tree = {root} & parents.keys()
    while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= more
    return tree


def _parent(pid: int) -> int:
    """Number of a process's parent; 0 where it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _command(pid: int) -> list[str]:
    """A process's command line; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def wait_until(done: Callable[[], bool], seconds: float) -> bool:
    """Whether `done` came true in this time."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
