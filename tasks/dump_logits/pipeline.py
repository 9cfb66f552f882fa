"""Three threads for three speeds: the device computes, an encoder compresses, a committer uploads.

Each waits for the next when it is ahead, so memory is bounded by MAX_QUEUED results and the scratch folder by
MAX_SHARDS shards: one that is encoded while the one before is uploaded. The device's thread is the caller's own. What
goes wrong in the others is raised in the caller, at its next call; leaving the `with` block ends both threads, after
they have committed the shards that were computed to their end, and dropped the one that was not or that went wrong.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

MAX_QUEUED = 3
"""Results between device and encoder, each of one batch: 4 MB at 8192 tokens and K = 64."""
MAX_SHARDS = 2
_POLL_SECONDS = 0.2

Result = TypeVar("Result")
_Taken = TypeVar("_Taken", contravariant=True)


class Output(Protocol[_Taken]):
    """One shard on its way into the store."""

    def add(self, result: _Taken) -> None:
        """In the encoder's thread."""

    def finish(self) -> None:
        """All results are in; in the encoder's thread."""

    def commit(self) -> None:
        """In the committer's thread."""

    def discard(self) -> None:
        """Always the last call, after a commit too: frees what it holds."""


class Pipeline(Generic[Result]):
    """`with Pipeline(waiting) as pipeline:` then for each shard `begin`, `put` …, and `end` or `abandon`."""

    def __init__(self, waiting: Callable[[], None] = lambda: None) -> None:
        """`waiting` is called every 0.2 s from a call that waits; what it raises ends the wait."""
        self._waiting = waiting
        self._results: queue.Queue[Callable[[], None] | None] = queue.Queue(MAX_QUEUED)
        # Never full: there are never more than MAX_SHARDS shards.
        self._finished: queue.SimpleQueue[Output[Result] | None] = queue.SimpleQueue()
        self._slots = threading.Semaphore(MAX_SHARDS)
        self._failure: BaseException | None = None
        self._failed: set[int] = set()
        self._current: Output[Result] | None = None
        self._encoder = threading.Thread(target=self._encode, name="encoder")
        self._committer = threading.Thread(target=self._commit, name="committer")

    # The caller's side

    def begin(self, output: Output[Result]) -> None:
        """Takes the next shard; waits while two are under way. The pipeline discards it, come what may."""
        try:
            while not self._slots.acquire(timeout=_POLL_SECONDS):
                self._look()
        except BaseException:
            output.discard()
            raise
        self._current = output
        self._look()

    def put(self, result: Result) -> None:
        """Hands over a result of the current shard."""
        output = self._current
        assert output is not None
        self._queue(lambda: self._try(output, lambda: output.add(result)))

    def end(self) -> None:
        """The current shard is computed: it will be encoded and committed."""
        output = self._current
        assert output is not None

        def finish() -> None:
            self._try(output, output.finish)
            self._finished.put(output)

        self._queue(finish)
        self._current = None

    def abandon(self) -> None:
        """The current shard will not be finished."""
        if self._current is not None:
            output, self._current = self._current, None
            self._results.put(lambda: self._drop(output))

    def drain(self) -> None:
        """Waits until all shards that were ended are committed."""
        held = 0
        try:
            while held < MAX_SHARDS:
                if self._slots.acquire(timeout=_POLL_SECONDS):
                    held += 1
                else:
                    self._look()
        finally:
            # A semaphore refuses to give back none, which would hide why the wait ended.
            if held:
                self._slots.release(held)
        self._look()

    def _queue(self, work: Callable[[], None]) -> None:
        while True:
            self._look()
            with suppress(queue.Full):
                self._results.put(work, timeout=_POLL_SECONDS)
                return

    def _look(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._waiting()

    def __enter__(self) -> Self:
        self._encoder.start()
        self._committer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()
        self._results.put(None)
        self._encoder.join()
        self._committer.join()
        if error is None and self._failure is not None:
            raise self._failure

    # The other threads: whatever fails, both go on to empty their queues, so that nobody waits for them for ever.

    def _encode(self) -> None:
        while (work := self._results.get()) is not None:
            work()
        self._finished.put(None)

    def _commit(self) -> None:
        while (output := self._finished.get()) is not None:
            self._try(output, output.commit)
            self._drop(output)

    def _try(self, output: Output[Result], work: Callable[[], None]) -> None:
        if id(output) in self._failed:
            return
        try:
            work()
        except BaseException as error:
            self._failed.add(id(output))
            self._failure = self._failure or error

    def _drop(self, output: Output[Result]) -> None:
        try:
            output.discard()
        except BaseException as error:
            self._failure = self._failure or error
        self._failed.discard(id(output))
        self._slots.release()
