"""What a worker process is given and what it says: spec.json in, events.jsonl out."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tasks.artifacts.frozen import Frozen
from tasks.artifacts.manifest import InputRecord

SPEC_VERSION = 1


class WorkerSpec(Frozen):
    """Everything a worker needs; it reads no profile and no other environment than credentials."""

    version: int = SPEC_VERSION
    stage: str
    label: str
    key: str
    attempt: str
    """Eight hex digits, new at each launch: part of every path that this launch writes."""
    store: str
    directory: str
    """The artifact's folder in the store."""
    scratch: str
    """A local folder of this launch alone; deleted by the runtime when the launch is over."""
    input_cache: str
    """A local folder shared by launches, where inputs from S3 are kept by digest."""
    recipe: dict[str, Any]
    runtime: dict[str, Any]
    inputs: dict[str, InputRecord]


class Event(Frozen):
    """One line of events.jsonl."""

    version: int = SPEC_VERSION
    time: float
    kind: Literal["progress", "metric", "receipt", "log"]
    message: str = ""
    done: float | None = None
    total: float | None = None
    unit: str = ""
    values: dict[str, Any] = Field(default_factory=dict)
