"""Stands between the runtime and the worker that it launched, and decides what a runtime's sudden end means.

`python -m tasks.worker.keeper STOP_FILE CMD…` runs the command and ends as it does. When the runtime is gone, which
closes standard input, the whole process group is killed at once; but where the stop file stands, the worker has been
asked to save a checkpoint and keeps its grace period for that. Prefect kills the process of a cancelled flow after
30 s, and a checkpoint of a 14B training with its optimiser takes longer.

The runtime's lock on the launch's scratch folder goes with it, so the keeper takes that over until the worker has
ended: another launch would sweep the folder away. Then it removes the folder.
"""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from tasks.worker.leash import (
    TO_RANKS_ALONE,
    die_with_parent,
    end_group_after_grace,
    grace_left,
    wait_for_end_of_input,
)


class _Orphan:
    """What the thread that waits for the runtime's end tells the one that waits for the worker's."""

    def __init__(self, stop_file: Path) -> None:
        self._stop_file = stop_file
        self._scratch = stop_file.parent
        self._lock = self._scratch.parent / f"{self._scratch.name}.lock"
        self._gone = threading.Event()

    def watch(self) -> None:
        """Returns never: waits for the end of the runtime, and then of the grace period."""
        wait_for_end_of_input()
        self._gone.set()
        if grace_left(self._stop_file) > 0:
            with suppress(OSError):
                held = os.open(self._lock, os.O_RDWR)
                fcntl.flock(held, fcntl.LOCK_EX)
        end_group_after_grace(self._stop_file)

    def end(self) -> None:
        """Leaves nothing behind of a worker that has outlived the runtime; does nothing where that is still there."""
        if self._gone.is_set():
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._lock.unlink(missing_ok=True)
            os.killpg(os.getpgrp(), signal.SIGKILL)


def _start(command: list[str]) -> int:
    """Starts the command so that it dies with this process; returns its number."""
    pid = os.fork()
    if pid == 0:
        try:
            die_with_parent()
            signal.pthread_sigmask(signal.SIG_BLOCK, TO_RANKS_ALONE)
            os.execvp(command[0], command)
        except OSError as error:
            os.write(2, f"{command[0]} could not be started: {error}\n".encode())
        os._exit(127)
    return pid


def _end_like(code: int) -> NoReturn:
    """Ends with this exit code, or by the same signal where it is negative."""
    if code < 0:
        # The worker has left the core file already, if there is one.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # Python handles only some of them itself, and SIGKILL cannot be handled.
        with suppress(OSError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def main() -> None:
    """Runs argv[2:] to its end."""
    orphan = _Orphan(Path(sys.argv[1]))
    # A handler, unlike SIG_IGN, is not inherited.
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    worker = _start(sys.argv[2:])
    threading.Thread(target=orphan.watch, name="keeper", daemon=True).start()
    _pid, status = os.waitpid(worker, 0)
    orphan.end()
    _end_like(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
