"""An input is downloaded once a node, however many of its processes want it at the same moment."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.manifest import Manifest
from tasks.artifacts.store import Store, open_store
from tests.artifacts.records import KEY, manifest_of, receipt_of

PROCESSES, OBJECTS, SIZE = 3, 4, 400_000
HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
input()
"""


def _finished(store: Store, name: str, files: Mapping[str, bytes]) -> tuple[Artifact, Manifest]:
    artifact = Artifact(store, f"artifacts/models/{name}-{KEY[:16]}")
    return artifact, artifact.commit(manifest_of(receipt_of(artifact, "main", files).objects))


def _fetch(store_uri: str, directory: str, target: Path, together: Barrier, counts: Queue[int]) -> None:
    store = open_store(store_uri)
    artifact = Artifact(store, directory)
    manifest = artifact.manifest()
    assert manifest is not None
    download, downloads = store.download, []

    def counted(path: str, local: Path) -> None:
        downloads.append(path)
        download(path, local)

    store.download = counted  # type: ignore[method-assign]
    together.wait(120)
    artifact.fetch(manifest, target)
    counts.put(len(downloads))


@pytest.fixture
def s3(seaweed, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    return open_store("s3://medius/staging")


def test_processes_of_one_node_download_an_input_once(s3: Store, tmp_path: Path) -> None:
    bytes_of = {f"{index}.safetensors": os.urandom(SIZE) for index in range(OBJECTS)}
    artifact, _ = _finished(s3, "wanted", bytes_of)
    context = multiprocessing.get_context("spawn")
    together, counts = context.Barrier(PROCESSES), context.Queue()
    target = tmp_path / "inputs" / "model"
    arguments = (s3.uri, artifact.directory, target, together, counts)
    processes = [context.Process(target=_fetch, args=arguments) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    each = sorted(counts.get(timeout=240) for _ in processes)
    for process in processes:
        process.join(60)
    assert each == [0] * (PROCESSES - 1) + [OBJECTS]
    assert {file.name: file.read_bytes() for file in target.iterdir()} == bytes_of


def test_a_node_whose_first_process_died_in_the_download_is_not_left_waiting(s3: Store, tmp_path: Path) -> None:
    artifact, manifest = _finished(s3, "left", {"model.safetensors": b"weights"})
    target = tmp_path / "inputs" / "model"
    target.parent.mkdir()
    command = [sys.executable, "-c", HOLD, f"{target}.lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.kill()
    artifact.fetch(manifest, target)
    assert (target / "model.safetensors").read_bytes() == b"weights"
