"""Reads what a worker tells while it runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from tasks.artifacts.errors import MediusError
from tasks.worker.spec import Event


class EventTail:
    """Reads the complete new lines of a growing events.jsonl."""

    def __init__(self, path: Path, emit: Callable[[Event], None]) -> None:
        self._path = path
        self._emit = emit
        self._offset = 0

    def read(self) -> None:
        try:
            # Opened at each look: to a stat alone NFS may answer what it knew a minute ago.
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_size == self._offset:
                    return
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.splitlines():
            try:
                event = Event.model_validate_json(line)
            except ValidationError as error:
                raise MediusError(f"{self._path} has a line that is no event: {line[:200]!r}") from error
            self._emit(event)
