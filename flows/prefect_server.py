"""A Prefect server for one run from the command line, where nobody has configured another.

Prefect would start one by itself, but leave it running when the flow's process is killed. This one hangs on the same
leash as the workers. It writes into PREFECT_HOME, so a later server shows the run as well.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from tasks.artifacts.errors import MediusError

START_SECONDS = 120
"""A loaded machine has been seen to need 48."""
STOP_SECONDS = 20
RUN_SETTINGS = {
    # Prefect waits twice as long before each further try: a server may be away for 4 minutes.
    "PREFECT_CLIENT_MAX_RETRIES": "7",
    # The shortest that Prefect takes. A run that waits for one on another host gives it up after five that are missed,
    # the alert of infra/automations.yaml comes after ten.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
}
"""What every process of a flow run has, wherever it runs: also in infra/compose.yaml and the Kubernetes template."""


def is_configured(home: Path) -> bool:
    """Whether the user has told Prefect which server to use."""
    return (
        any(name in os.environ for name in ("PREFECT_API_URL", "PREFECT_PROFILE")) or (home / "profiles.toml").exists()
    )


def start_own_server(home: Path) -> Callable[[], None]:
    """Starts a server and names it in PREFECT_API_URL, which Prefect reads when it is imported; call this before.

    It is stopped when the interpreter exits, after Prefect has sent its last logs there. Returns a function that
    returns when the server answers: what is imported before that costs no time.
    """
    if is_configured(home):
        return _require_answer
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "flows.sqlite_server", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks.worker.leash", str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C goes to the terminal's whole process group; the flow needs its server until its last state is told.
            start_new_session=True,
        )
    # Exit handlers run in reverse order, so this one after those of the libraries that are imported from here on.
    atexit.register(_stop, process)
    url = f"http://127.0.0.1:{port}/api"
    os.environ["PREFECT_API_URL"] = url
    return lambda: _wait_until_up(process, url, home / "server.log")


@contextmanager
def losing_the_server() -> Iterator[None]:
    """Around a flow; call with Prefect imported. Raises MediusError where the block lost its Prefect server for longer
    than Prefect itself tries again, whatever Prefect makes of that.
    """
    try:
        yield
    except MediusError:
        raise
    except Exception as error:
        lost = _unanswered(error)
        if lost is None:
            raise
        raise MediusError(
            f"the Prefect server at {os.environ.get('PREFECT_API_URL')} was lost ({str(lost) or type(lost).__name__}); "
            f"what is finished is kept: bring it back and run the same command again"
        ) from error


def _unanswered(error: BaseException | None) -> Exception | None:
    """The request to the server that failed, if one is behind an error."""
    import httpx

    while error is not None:
        if isinstance(error, httpx.HTTPError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _require_answer() -> None:
    """Raises MediusError where the server that Prefect is to use does not answer, or takes neither password nor key.

    Prefect itself would end a run at a wrong password with two pages.
    """
    # Prefect reads them when it is imported, which is after the variables of `prepare_prefect` are set.
    from flows.prefect_settings import find_server

    if (server := find_server()) is not None:
        server.require()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_until_up(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    code = process.poll()
    how = f"ended with exit code {code}" if code is not None else f"did not come up in {START_SECONDS} s"
    raise MediusError(
        f"the Prefect server of this run {how}; its log is {log}: mend the cause, or name a server in PREFECT_API_URL"
    )


def start_prefect() -> Callable[[], None]:
    """Call before the first import of Prefect. The function returned waits for a server, and from then on the first
    Ctrl-C or SIGTERM asks the run's workers to save what they have and end.
    """
    wait_until_up = start_own_server(prepare_prefect())
    # What is imported now stays to the end: the collector would walk through its 180,000 objects again and again, 0.1 s
    # each time, a tenth of the imports' time.
    gc.disable()

    def wait() -> None:
        gc.freeze()
        gc.enable()
        from flows.opened import STOP

        def interrupt(_signal: int, _frame: FrameType | None) -> None:
            if STOP.is_set():
                raise KeyboardInterrupt
            STOP.set()
            Console(stderr=True).print("stopping: each stage saves what it has; press Ctrl-C again to give that up")

        wait_until_up()
        signal.signal(signal.SIGINT, interrupt)
        # While the flow runs Prefect has a handler of its own, which cancels the flow and then calls this one.
        signal.signal(signal.SIGTERM, interrupt)

    return wait


def prepare_prefect() -> Path:
    """Settings for a flow run from the command line; what the user has set wins. Returns Prefect's home."""
    home = Path(".medius/prefect").resolve()
    home.mkdir(parents=True, exist_ok=True)
    defaults = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(START_SECONDS),
        **RUN_SETTINGS,
        # The one sentence of a failure is printed at the end; tracebacks stay with the run, on the dashboard.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    return Path(os.environ["PREFECT_HOME"])
