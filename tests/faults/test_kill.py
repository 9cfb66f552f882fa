"""A run is killed with -9 in a dump, in a training, in the fine-tuning and just before a manifest, and run again.

What must hold: it finishes, every digest equals the undisturbed run's, no more than a shard or a checkpoint interval is
done twice, and soon after each kill nothing of the run is alive. The moments come from a seed that is printed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.store import open_store
from tests.micro import FinishedRun, digests, run_micro, start_micro

SEED = int(os.environ.get("MEDIUS_KILL_SEED", "20261124"))
WAIT_SECONDS = 240


def processes_of(folder: Path) -> dict[int, str]:
    """Every living process that works in `folder` or names it on its command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            where = str((entry / "cwd").resolve())
        except OSError:
            continue
        if command and (str(folder) in command or where.startswith(str(folder))):
            found[int(entry.name)] = command
    return found


def workers_of(folder: Path) -> dict[int, str]:
    return {number: command for number, command in processes_of(folder).items() if ".worker" in command}


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert process.poll() is None, f"the run ended with {process.returncode} before {what}"
        assert time.monotonic() < deadline, f"{what} did not come in {WAIT_SECONDS} s"
        time.sleep(0.02)


def kill_and_check(process: subprocess.Popen[str], folder: Path) -> None:
    """kill -9 of the flow's process alone; its workers and its server must follow by themselves."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(5)
    assert workers_of(folder) == {}
    deadline = time.monotonic() + 25
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert processes_of(folder) == {}


def artifact_of_label(store: str, stage: str, label: str) -> Path | None:
    folders = sorted((Path(store) / "artifacts" / stage).glob(f"{label}-*"))
    return folders[0] if folders else None


def has(store: str, stage: str, label: str, pattern: str) -> bool:
    folder = artifact_of_label(store, stage, label)
    return folder is not None and any(folder.glob(pattern))


def test_killed_anywhere_it_ends_with_the_same_bytes(undisturbed: FinishedRun, tmp_path: Path) -> None:
    print(f"kill seed {SEED}; set MEDIUS_KILL_SEED to try another")
    chance = random.Random(SEED)
    folder, store = tmp_path / "run", str(tmp_path / "store")

    process = start_micro(folder, store)
    wait_for(lambda: has(store, "dump_logits", "logits-*", "shards/*.json"), process, "the first shard of a dump")
    time.sleep(chance.uniform(0, 0.5))
    kill_and_check(process, folder)
    shards_before = {path: path.read_bytes() for path in Path(store).glob("artifacts/dump_logits/*/shards/*.json")}
    assert shards_before

    process = start_micro(folder, store)
    wait_for(lambda: has(store, "distill", "distill-*", "checkpoints/*.json"), process, "a checkpoint of a training")
    time.sleep(chance.uniform(0, 0.5))
    kill_and_check(process, folder)
    for path, written in shards_before.items():
        assert path.read_bytes() == written, "a finished shard was written a second time"

    process = start_micro(folder, store)
    wait_for(lambda: has(store, "sft", "sft", "checkpoints/*.json"), process, "a checkpoint of the fine-tuning")
    time.sleep(chance.uniform(0, 0.3))
    kill_and_check(process, folder)

    run_micro(folder, store)
    assert digests(store) == digests(undisturbed.store)
    logs = "\n".join(path.read_text() for path in Path(store).glob("artifacts/*/*/logs/*.log"))
    assert "goes on after step" in logs, "a killed training went on from its checkpoint"


KILL_BEFORE_MANIFEST = """
import os, signal, sys
from tasks.artifacts.artifact import Artifact

commit = Artifact.commit
def killed(self, manifest):
    if manifest.label == "fuse":
        os.kill(os.getpid(), signal.SIGKILL)
    return commit(self, manifest)
Artifact.commit = killed

from flows.cli import main
main()
"""


def test_killed_between_the_last_object_and_the_manifest(undisturbed: FinishedRun, tmp_path: Path) -> None:
    folder, store = tmp_path / "run", tmp_path / "store"
    subprocess.run(["cp", "-r", undisturbed.store, str(store)], check=True)
    fused = artifact_of_label(str(store), "fuse", "fuse")
    assert fused is not None
    for name in ("manifest.json", "shards", "data", "logs"):
        subprocess.run(["rm", "-r", str(fused / name)], check=True)

    process = start_micro(folder, str(store), command=[sys.executable, "-c", KILL_BEFORE_MANIFEST])
    assert process.wait(WAIT_SECONDS) == -signal.SIGKILL
    opened = Artifact(open_store(str(store)), f"artifacts/fuse/{fused.name}")
    assert opened.manifest() is None
    written = opened.receipts()["main"]
    time.sleep(5)
    assert workers_of(folder) == {}

    run_micro(folder, str(store))
    assert digests(str(store)) == digests(undisturbed.store)
    manifest = opened.manifest()
    assert manifest is not None
    assert manifest.objects == written.objects, "what the killed run had uploaded was used, not made again"
    assert len(list((fused / "data").iterdir())) == 1


def test_an_interrupted_run_says_so(tmp_path: Path) -> None:
    """Ctrl-C: exit code 4, and the record of the run says interrupted."""
    folder, store = tmp_path / "run", str(tmp_path / "store")
    process = start_micro(folder, store)
    wait_for(lambda: bool(workers_of(folder)), process, "the first worker")
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(WAIT_SECONDS) == 4, (folder / "log").read_text()[-2000:]
    assert "run the same command again" in (folder / "log").read_text()
    assert processes_of(folder) == {}
