"""The failures a user can meet. Each message says what, where, and what to do next.

`exit_code` is what the `medius` command returns; `retryable` decides whether Prefect tries the stage again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from tasks.artifacts.redact import redact


class MediusError(Exception):
    """Base of every expected failure."""

    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, *arguments: object) -> None:
        # Messages go to terminals, logs, records and dashboards, and quote what servers and libraries said.
        super().__init__(*(redact(part) if isinstance(part, str) else part for part in arguments))


class BadInputError(MediusError):
    """A profile, a flag or an input that cannot work; found before any long work."""

    exit_code = 2


class GateFailedError(MediusError):
    """A stage's result is committed, but it would waste the next stage's work.

    `results` are all gates of the stage that was judged, those that it passed included; an input's are not repeated.
    """

    exit_code = 3

    def __init__(self, message: str, results: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.results = tuple(results)


class InterruptedRunError(MediusError):
    """The run was stopped from outside; what it had finished is kept."""

    exit_code = 4


class StoreError(MediusError):
    """The object store refused or lost something."""


class StoreMissingError(BadInputError, StoreError):
    """There is no such bucket."""


class ObjectMissingError(StoreError):
    """There is no object under this path."""


class ObjectExistsError(StoreError):
    """A create-only write found an object with other content."""


class ObjectChangedError(StoreError):
    """A conditional overwrite found another version than the caller had read."""


class TransientStoreError(StoreError):
    """A time-out, a reset or a 503 that outlived the client's own retries."""

    retryable = True


class CorruptArtifactError(StoreError):
    """Bytes in the store do not have the checksum that was committed."""


class StaleInputError(BadInputError):
    """A finished artifact was made from other input bytes than the ones that stand there now."""


class LeaseHeldError(MediusError):
    """Another run works on this artifact."""

    retryable = True


class LeaseLostError(MediusError):
    """Another run took this artifact over while this one worked on it."""

    retryable = True


class WorkerFailedError(MediusError):
    """The stage's process ended with an error."""


class WorkerInterruptedError(MediusError):
    """The stage's process died from outside (preemption, a kill, a lost node)."""

    retryable = True
