"""Begins a process on one node of a launch over several, with the environment that the launch was given.

`python -m tasks.worker.node FILE ARGUMENTS…` becomes this Python with the arguments, after setting the variables of the
JSON file. What ssh, pdsh and srun carry of an environment differs, and deepspeed carries it in a command line, which
every user of the node can read and the log repeats. A file in the shared scratch folder that only its owner may read is
the same under all of them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from tasks.worker.leash import TO_RANKS_ALONE


def main() -> None:
    """Sets the variables and becomes the command."""
    file = Path(sys.argv[1])
    try:
        variables = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        sys.exit(f"this node does not see {file}; put the scratch folder on a file system that all nodes mount")
    os.environ.update(variables)
    # For torchrun's agent on this node; under deepspeed this is a rank already.
    signal.pthread_sigmask(signal.SIG_BLOCK, TO_RANKS_ALONE)
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])


if __name__ == "__main__":
    main()
