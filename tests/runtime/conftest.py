from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.store import Store
from tasks.runtime.declare import Step
from tasks.runtime.execute import RunContext, execute
from tasks.worker.spec import Event

ROOT = Path(__file__).parents[2]
Logs = Callable[[Step], list[str]]


@pytest.fixture(autouse=True)
def _workers_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker of these tests is a module of the tests; an installation holds only the real ones."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))


@pytest.fixture
def events() -> list[Event]:
    """All that the workers of `context` have said."""
    return []


@pytest.fixture
def context(store: Store, tmp_path: Path, events: list[Event]) -> RunContext:
    return RunContext(store=store, scratch=tmp_path / "scratch", watch=lambda _step, event: events.append(event))


@pytest.fixture
def launches(store: Store) -> Logs:
    """launches(step): the logs of the step's workers, one a launch, oldest first."""

    def logs(step: Step) -> list[str]:
        entries = sorted(store.list(Artifact(store, step.directory).path("logs")), key=lambda entry: entry.modified)
        return [store.get(entry.path).decode() for entry in entries]

    return logs


def is_alive(process: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_for(condition: Callable[[], object], seconds: float, what: str | Callable[[], str]) -> None:
    """Returns when `condition()` is true; fails the test after `seconds`, and says `what` was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        told = what if isinstance(what, str) else what()
        assert time.monotonic() < deadline, f"{told}: not within {seconds} s"
        time.sleep(0.05)


@pytest.fixture
def announced(tmp_path: Path) -> Path:
    folder = tmp_path / "processes"
    folder.mkdir()
    return folder


def processes(folder: Path) -> list[int]:
    """Those that were announced in a folder."""
    return [int(path.name) for path in folder.iterdir()]


class Background:
    """A step executed in a thread, and how that ended."""

    def __init__(self, step: Step, context: RunContext) -> None:
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(step, context))
        self.thread.start()

    def _run(self, step: Step, context: RunContext) -> None:
        try:
            execute(step, context)
        except BaseException as error:
            self.error = error
