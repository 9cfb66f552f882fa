"""The steps of a surgery as others see them, and where it can be stopped."""

from __future__ import annotations

from tasks.worker.job import Job


class Steps:
    """Counts the steps of one surgery. A worker that was asked to stop ends between two of them, and within a long one
    where that looks for it. Nothing of an unfinished surgery is kept: the next launch starts anew."""

    def __init__(self, job: Job, total: int) -> None:
        self._job, self._total, self._done = job, total, 0

    def next(self) -> None:
        """Begins a step.

        Raises:
            PreemptedError: a stop was asked for.
        """
        self.leave_if_asked()
        self._job.progress(self._done, self._total, "steps")
        self._done += 1

    def leave_if_asked(self) -> None:
        """Ends the worker if a stop was asked for.

        Raises:
            PreemptedError: it was.
        """
        self._job.leave_if_asked()
