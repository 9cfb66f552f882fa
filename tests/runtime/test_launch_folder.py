"""Launch folders: gone when the launch is, and nobody else's is touched."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tasks.runtime.launch_folder import scratch_folder

_HOLD = """
import sys, time
from pathlib import Path
from tasks.runtime.launch_folder import scratch_folder
with scratch_folder(Path(sys.argv[1]), "step", "other") as folder:
    (folder / "data").touch()
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_living_launchs_folder_stays_and_a_killed_ones_goes(tmp_path: Path) -> None:
    other = tmp_path / "step" / "other" / "data"
    with subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with scratch_folder(tmp_path, "step", "mine") as mine:
            (mine / "data").touch()
            assert other.exists()
        assert other.exists()
        assert not mine.exists()
        process.kill()
        process.wait()
        assert other.exists()
        with scratch_folder(tmp_path, "step", "mine"):
            assert not other.parent.exists()
    assert list(tmp_path.iterdir()) == []


def test_what_a_dying_worker_puts_back_goes_with_the_next_launch(tmp_path: Path) -> None:
    with scratch_folder(tmp_path, "step", "mine"):
        (tmp_path / "step" / "dead").mkdir()
        (tmp_path / "step" / "dead" / "late").touch()
    assert list(tmp_path.iterdir()) == []


def test_launches_that_come_and_go_at_once_keep_their_own_folders(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def launch(number: int) -> None:
        try:
            for repetition in range(100):
                with scratch_folder(tmp_path, "step", f"{number}-{repetition}") as folder:
                    (folder / "data").touch()
                    assert (folder / "data").exists()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=launch, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_removed_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_parent: Path) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    def fail() -> None:
        with scratch_folder(tmp_path, "step", "mine"):
            monkeypatch.setattr("tasks.runtime.launch_folder._sweep", away)
            raise KeyError("the cause")

    with pytest.raises(KeyError, match="the cause"):
        fail()
