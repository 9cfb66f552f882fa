"""A worker of Prefect whose end lets its flow runs save what they have.

`python -m flows.pool_worker --pool NAME …` is `prefect worker start` with the same options. Prefect's worker, asked to
end, kills the processes of its runs within milliseconds; this one is killed in its place, which its runs outlive, and
they are asked as `medius down` asks them. Whoever stops it has to wait as long as that takes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from types import FrameType

from flows.stack import STOP_SECONDS
from flows.stack_processes import MARK, end_work

_LOOK_SECONDS = 0.2


def keep(command: Sequence[str]) -> int:
    """Runs a worker until it ends, or until SIGTERM or Ctrl-C asks this process to; then ends its flow runs.

    A second signal ends this process at once; the runs have been asked by then, and save by themselves.

    Returns:
        The worker's exit code, 0 where it was asked to end.
    """
    asked: list[int] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, ask)
    token = uuid.uuid4().hex
    # In a session of its own, where Ctrl-C does not reach it; and never without this process, which ends it well.
    leash = [sys.executable, "-m", "tasks.worker.leash", str(os.getpid())]
    worker = subprocess.Popen([*leash, *command], env={**os.environ, MARK: token}, start_new_session=True)
    while worker.poll() is None and not asked:
        time.sleep(_LOOK_SECONDS)
    code = 0 if asked else worker.wait()
    if asked:
        print("stopping: each stage saves what it has", file=sys.stderr, flush=True)
    end_work(token, {worker.pid}, set(), STOP_SECONDS)
    worker.wait()
    return code


if __name__ == "__main__":
    sys.exit(keep([sys.executable, "-m", "prefect", "worker", "start", *sys.argv[1:]]))
