"""Tells a server of a stage in a thread of its own: one that is away for minutes holds up nobody who looks after a
worker, which may have to save a checkpoint meanwhile."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable


class NewestTeller:
    """Calls what it is given, one after another; of what waits under one name only the newest is called."""

    def __init__(self) -> None:
        # What is called belongs to the run of the thread that made this.
        self._context = contextvars.copy_context()
        self._changed = threading.Condition()
        self._waiting: dict[str, Callable[[], object]] = {}
        self._closed = False
        self._thread: threading.Thread | None = None

    def tell(self, name: str, call: Callable[[], object]) -> None:
        """Has it called soon, unless another of this name comes before. It must not raise. Returns at once."""
        with self._changed:
            self._waiting[name] = call
            self._changed.notify()
        if self._thread is None:
            # A daemon: a process that ends waits for no server.
            self._thread = threading.Thread(target=self._context.run, args=(self._work,), daemon=True)
            self._thread.start()

    def close(self, seconds: float) -> None:
        """Waits until all is told, at most so long; what still waits then is told later, if the process lasts."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(seconds)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                call = self._waiting.pop(next(iter(self._waiting)))
            call()
