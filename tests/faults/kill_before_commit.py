"""The `medius` command, with a kill -9 of itself between a step's last object and its manifest.

python tests/faults/kill_before_commit.py LABEL run micro …
"""

from __future__ import annotations

import os
import signal
import sys

from flows.cli import main
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.manifest import Manifest


def kill_at(label: str) -> None:
    """From here on, committing the step `label` kills this process instead."""
    commit = Artifact.commit

    def killed_or_commit(artifact: Artifact, manifest: Manifest) -> Manifest:
        if manifest.label == label:
            os.kill(os.getpid(), signal.SIGKILL)
        return commit(artifact, manifest)

    Artifact.commit = killed_or_commit  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    kill_at(sys.argv.pop(1))
    main()
