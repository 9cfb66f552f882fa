"""Keeps a process from outliving the one that started it.

Two independent ties, since each alone has a hole. The kernel's parent-death signal reaches only a direct child, so
`python -m tasks.worker.leash PARENT CMD…` sets it on the launched command and every rank sets it again on itself. And
standard input is a pipe whose other end only the runtime holds: a rank that torchrun put into a session of its own
still inherits it and reads end-of-file the moment the runtime is gone, however it went.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading

WATCH_STDIN = "MEDIUS_WATCH_STDIN"
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Asks the kernel for SIGKILL when the thread that started this process ends (Linux; elsewhere a no-op)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def watch_stdin() -> None:
    """Kills this process's group when standard input reaches its end; only where the runtime asked for it."""
    if os.environ.get(WATCH_STDIN) != "1":
        return

    def wait_for_end() -> None:
        while os.read(0, 4096):
            pass
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=wait_for_end, name="leash", daemon=True).start()


def main() -> None:
    """Runs a command under the parent-death signal, which survives the exec; argv[1] is the parent's process id."""
    die_with_parent()
    if os.getppid() != int(sys.argv[1]):
        # The parent ended before the signal was set, which then never comes.
        sys.exit(1)
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
