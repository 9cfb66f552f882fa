"""Keeps a process from outliving the one that started it.

Two independent ties, since each alone has a hole. The kernel's parent-death signal reaches only a direct child: a
worker is one of its keeper (keeper.py), and every rank sets the signal again on itself. And standard input is a pipe
whose other end only the runtime holds: keeper and ranks inherit it, even a rank that torchrun put into a session of its
own, and read end-of-file the moment the runtime is gone, however it went.

A worker that has been asked to stop is spared until its grace period ends, whatever becomes of the runtime: the stop
file says how long that is.

`python -m tasks.worker.leash PARENT CMD…` ties any other command to its parent, by the signal alone.

Neither tie reaches another node. There the tie is a file in the shared scratch folder that the runtime touches: a rank
that sees no change of it for 50 s, or sees it gone, ends. It counts with its own clock, so the nodes' clocks need not
agree. While the file system of a hard mount does not answer, it sees nothing and waits.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

WATCH_STDIN = "MEDIUS_WATCH_STDIN"
HEARTBEAT = "MEDIUS_HEARTBEAT"
"""Names the file that the runtime touches, where a launch is over several nodes."""
TO_RANKS_ALONE = {signal.SIGTERM}
"""Whoever takes a node away sends it to every process, for the ranks to save a checkpoint. Launchers would end at once
(deepspeed's runner) or kill the ranks after 30 s (its launch, torchrun's agent), so they are started with it blocked,
which they hand down to the ranks, and a rank lets it in (job.py)."""
_BEAT_SECONDS = 5.0
_SILENCE_SECONDS = 50.0
_LOOK_SECONDS = 2.0
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Asks the kernel for SIGKILL when the thread that started this process ends (Linux; elsewhere a no-op)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def ask_to_stop(stop_file: Path, grace_seconds: float) -> None:
    """Asks a launch to save its state and end, and says how long it may take for that."""
    draft = stop_file.with_name(f".{stop_file.name}")
    draft.write_text(str(grace_seconds))
    draft.replace(stop_file)


def grace_left(stop_file: Path) -> float:
    """Seconds that a launch still has to save its state; 0 where nobody has asked it to stop."""
    try:
        granted, asked = float(stop_file.read_text()), stop_file.stat().st_mtime
    except (OSError, ValueError):
        return 0.0
    # The file may be on another host's file system, whose clock is another.
    return max(0.0, min(granted, asked + granted - time.time()))


def end_group_after_grace(stop_file: Path) -> None:
    """Kills this process's group: at once, or when the grace period of a launch that was asked to stop is over."""
    time.sleep(grace_left(stop_file))
    os.killpg(os.getpgrp(), signal.SIGKILL)


def wait_for_end_of_input() -> None:
    """Returns when standard input reaches its end."""
    while os.read(0, 4096):
        pass


def watch_stdin(stop_file: Path) -> None:
    """Kills this process's group when standard input reaches its end, or after the grace period of a launch that was
    asked to stop; only where the runtime asked for it.
    """
    if os.environ.get(WATCH_STDIN) != "1":
        return

    def watch() -> None:
        wait_for_end_of_input()
        end_group_after_grace(stop_file)

    threading.Thread(target=watch, name="leash", daemon=True).start()


class Heartbeat:
    """The runtime's side of the tie to other nodes: a thread that touches a file until it is stopped."""

    def __init__(self, path: Path, every_seconds: float = _BEAT_SECONDS) -> None:
        self._path = path
        self._every_seconds = every_seconds
        self._stopped = threading.Event()
        path.touch()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _beat(self) -> None:
        while not self._stopped.wait(self._every_seconds):
            # A moment without its file system is no reason to lose a training.
            with suppress(OSError):
                os.utime(self._path)

    def stop(self) -> None:
        """Ends it: every rank that still runs sees the file gone and ends, too."""
        self._stopped.set()
        self._path.unlink(missing_ok=True)


def watch_heartbeat(
    stop_file: Path, silence_seconds: float = _SILENCE_SECONDS, look_seconds: float = _LOOK_SECONDS
) -> None:
    """Kills this process's group when the runtime's heartbeat stops, or after the grace period of a launch that was
    asked to stop; only where HEARTBEAT names one.
    """
    path = os.environ.get(HEARTBEAT)
    if not path:
        return

    def look() -> int | None:
        """Time of the last beat, None if the launch is over, 0 if it cannot be seen now."""
        try:
            # Opening asks an NFS server; a stat may be answered from a cache of up to a minute.
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        except OSError:
            return 0
        try:
            return os.fstat(descriptor).st_mtime_ns
        except OSError:
            return 0
        finally:
            os.close(descriptor)

    def watch() -> None:
        wait_for_silence(look, silence_seconds, look_seconds)
        with suppress(OSError):
            os.write(2, b"the run that started this process is gone: ending\n")
        end_group_after_grace(stop_file)

    threading.Thread(target=watch, name="heartbeat", daemon=True).start()


def wait_for_silence(
    look: Callable[[], int | None],
    silence_seconds: float,
    look_seconds: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Returns when the launch is over or no beat has been seen for more than `silence_seconds`.

    Args:
        look: time of the last beat, None if the launch is over, 0 if it cannot be seen now.
        look_seconds: between two looks.
    """
    last, silence = 0, 0.0
    while silence <= silence_seconds:
        begun = clock()
        beat = look()
        if beat is None:
            return
        if beat not in (0, last):
            last, silence = beat, 0.0
        elif beat == 0:
            silence += clock() - begun
        # An old beat counts by looks, not by the clock: a hard NFS mount whose server was away for minutes blocks look
        # and runtime alike, and then shows the beat from before until the runtime's next one arrives.
        sleep(look_seconds)
        silence += look_seconds


def main() -> None:
    """Runs a command under the parent-death signal, which survives the exec; argv[1] is the parent's process id."""
    die_with_parent()
    if os.getppid() != int(sys.argv[1]):
        # The parent ended before the signal was set, which then never comes.
        sys.exit(1)
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
