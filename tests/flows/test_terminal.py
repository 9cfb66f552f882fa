"""What a run prints while it works: lines as they are, and no reason to end a stage."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from rich.console import Console

from flows.terminal import Terminal
from tasks.worker.spec import Event
from tests.runtime.errand import errand


class Gone(io.StringIO):
    """A terminal that was closed."""

    def __init__(self, error: type[OSError]) -> None:
        super().__init__()
        self.error = error
        self.asked = 0

    def write(self, _text: str) -> NoReturn:
        self.asked += 1
        raise self.error


@pytest.mark.parametrize("live", [False, True], ids=["lines", "bars"])
def test_what_looks_like_markup_is_printed_as_it_is(live: bool) -> None:
    text = io.StringIO()
    terminal = Terminal(Console(file=text, force_terminal=live, width=120, highlight=False))
    step = errand("a", label="base")
    with terminal:
        terminal.watch(step, Event(time=0, kind="log", message="the template ends with [/INST]"))
        terminal.watch(step, Event(time=0, kind="progress", done=1, total=2, unit="[/rows]"))
        terminal.watch(step, Event(time=0, kind="log", message="[/]"))
    assert "the template ends with [/INST]" in text.getvalue()
    assert "[/]" in text.getvalue()
    if not live:
        assert "1 of 2 [/rows]" in text.getvalue()


def leave(_console: Console) -> NoReturn:
    """What Rich does, but for sending this process's output to nowhere."""
    raise SystemExit(1)


@pytest.mark.parametrize("error", [OSError, BrokenPipeError])
def test_a_terminal_that_is_gone_ends_no_stage(monkeypatch: pytest.MonkeyPatch, error: type[OSError]) -> None:
    monkeypatch.setattr(Console, "on_broken_pipe", leave)
    gone = Gone(error)
    terminal = Terminal(Console(file=gone))
    terminal.watch(errand("a"), Event(time=0, kind="log", message="done"))
    assert gone.asked == 1, "the line was tried, and its loss ended nothing"


LOGS = """
import sys
from pathlib import Path
from prefect.logging import get_logger
from prefect.logging.configuration import setup_logging
from flows.terminal import outlive_the_terminal
setup_logging()
if sys.argv[2] == "outlives":
    outlive_the_terminal()
log = get_logger("dag")
log.warning("begun")
sys.stdin.readline()
for number in range(3):
    log.warning("line %d", number)
Path(sys.argv[1]).touch()
"""


@pytest.mark.parametrize("way", ["outlives", "ends"])
def test_a_process_goes_on_logging_when_the_worker_that_reads_it_is_gone(tmp_path: Path, way: str) -> None:
    done = tmp_path / "done"
    command = [sys.executable, "-c", LOGS, str(done), way]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stderr is not None
    assert b"begun" in process.stderr.readline()
    process.stderr.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    process.wait(120)
    # The second shows that Rich still ends such a process, and so what the first is worth.
    assert done.exists() == (way == "outlives")


IMPORTS = """
import logging, sys, threading
from flows.terminal import outlive_the_terminal
sys.setswitchinterval(1e-6)
loaded = threading.Event()
def load():
    for number in range(20000):
        logging.getLogger(f"module{number}")
    loaded.set()
threading.Thread(target=load).start()
while not loaded.is_set():
    outlive_the_terminal()
"""


def test_modules_may_be_imported_meanwhile() -> None:
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, timeout=120)
