"""A Prefect server for the tests of one module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.events.worker import EventsWorker
from prefect.testing.utilities import prefect_test_harness


@contextmanager
def prefect_for_a_module() -> Iterator[None]:
    """Prefect's own harness, and an end to the thread that sends events: it would go on speaking to this server when
    the next module of the same process has another, and its events would be lost.
    """
    with prefect_test_harness(server_startup_timeout=300):
        try:
            yield
        finally:
            EventsWorker.drain_all(timeout=30, at_exit=False)
