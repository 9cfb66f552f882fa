"""TensorBoard event files of one training, in a folder that people can watch while it runs.

    <scratch root>/tensorboard/<label>-<key8>-<store8>/events.out.tfevents.…

With the default scratch root that is `tensorboard --logdir .medius/scratch/tensorboard`.

A launch writes the curve from the beginning, the steps that earlier launches made included, so its one file is whole on
whatever host it runs; it says that what earlier files hold is void, so no point stands twice.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

KEPT_RUNS = 20
"""Folders that stay below the root, the latest ones: they are copies of what the artifacts hold."""
_FLUSH_SECONDS = 5


def _last_written(run: Path) -> float:
    """When a run's newest event was written; a folder without events is the oldest."""
    newest = 0.0
    for file in run.glob("events.*"):
        # Another training may take the folder away at this moment.
        with suppress(FileNotFoundError):
            newest = max(newest, file.stat().st_mtime)
    return newest


class EventFiles:
    """The event file of this launch."""

    def __init__(self, root: Path, run: str) -> None:
        """Removes the oldest of more than 20 runs, and of this run's earlier files all but the latest."""
        # Takes 0.25 s of CPU, and only the main process writes events.
        from torch.utils.tensorboard.writer import SummaryWriter

        self.directory = root / run
        earlier = sorted(self.directory.glob("events.*"))
        # The latest stays: a TensorBoard that is open on it would otherwise go on showing it, and never the next.
        for file in earlier[:-1]:
            file.unlink(missing_ok=True)
        self._earlier = set(earlier)
        for path in sorted(root.glob("*"), key=_last_written)[: -(KEPT_RUNS - 1)]:
            shutil.rmtree(path, ignore_errors=True)
        # From `purge_step` on the points of earlier files are void.
        self._writer = SummaryWriter(str(self.directory), purge_step=0, flush_secs=_FLUSH_SECONDS)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each named curve; a slash in a name groups curves."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def files(self) -> list[Path]:
        """What is to be kept, with all points in it."""
        self._writer.flush()
        return sorted(set(self.directory.glob("events.*")) - self._earlier)

    def close(self) -> None:
        """Ends the writing thread; the files stay."""
        self._writer.close()
