"""Which process it was: a number that the kernel gave away again is told from the one that had it before.

From /proc of Linux. A process is the same one if host, boot, namespace, number and start time are.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

from tasks.artifacts.frozen import Frozen


def boot_id() -> str:
    """Names this boot of the host; where the kernel has no such file, the host."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else socket.gethostname()


def pid_namespace() -> str:
    """The namespace in which this host's process numbers count: containers may share a host's name and boot."""
    path = Path("/proc/self/ns/pid")
    return str(path.readlink()) if path.is_symlink() else ""


def process_started(process: int) -> str | None:
    """Start time of a process in clock ticks since boot; None if there is no such process (or it is a zombie)."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]


def group_is_alive(leader: int) -> bool:
    """Whether a process group has a process that is no zombie: those are for their parent to collect."""
    try:
        os.killpg(leader, 0)
    except (ProcessLookupError, PermissionError):
        return False
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            # Others end meanwhile.
            with suppress(OSError):
                state, _parent, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(group) == leader and state not in {"Z", "X"}:
                    return True
    return False


class ProcessIdentity(Frozen):
    """One process among all of all hosts."""

    host: str
    boot: str
    process: int
    process_started: str
    namespace: str = ""

    def is_here(self) -> bool:
        """Whether it is, or was, one of this host and boot, so that it can be told whether it lives."""
        return (self.host, self.boot, self.namespace) == (socket.gethostname(), boot_id(), pid_namespace())

    def is_gone(self) -> bool:
        """Whether it is known to have ended. One elsewhere is never called gone."""
        return self.is_here() and process_started(self.process) != self.process_started

    def lives_here(self) -> bool:
        """Whether it is known to live. One elsewhere never is."""
        return self.is_here() and not self.is_gone()


def own_process() -> ProcessIdentity:
    """The process that asks."""
    process = os.getpid()
    return ProcessIdentity(
        host=socket.gethostname(),
        boot=boot_id(),
        process=process,
        process_started=process_started(process) or "",
        namespace=pid_namespace(),
    )
