"""A worker's side of the protocol: its recipe and inputs, its shards and checkpoints, its progress, its end.

A worker module defines `run(job)` and ends with `if __name__ == "__main__": worker_main(run)`. It knows no Prefect,
and runs by hand with `python -m tasks.<stage>.worker --spec spec.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.checkpoint import CheckpointFolder
from tasks.artifacts.errors import CorruptArtifactError, MediusError, ObjectMissingError
from tasks.artifacts.fingerprint import file_sha256, sha256_hex
from tasks.artifacts.manifest import MAIN_SHARD, InputRecord, Manifest, ObjectRecord, ShardReceipt
from tasks.artifacts.redact import redact, redact_record
from tasks.artifacts.store import open_store
from tasks.worker.input_cache import input_folder, keep_in_use
from tasks.worker.leash import TO_RANKS_ALONE, die_with_parent, watch_heartbeat, watch_stdin
from tasks.worker.spec import Event, WorkerSpec

STOP_FILE = "stop"
"""In the scratch folder, where spec.json is; its presence asks the worker to save its state and end."""
END_FILE = "end.json"
"""In the scratch folder: exit code and last sentence of the first rank that failed, which a launcher would swallow."""
EXIT_BAD_INPUT = 2
EXIT_PREEMPTED = 75
"""The worker was asked to stop, saved what it had, and can go on from there (EX_TEMPFAIL)."""
EXIT_TRANSIENT = 76
"""Something outside failed in a way that a later try may not meet."""
EXIT_SAID = 77
"""It failed for a reason that its last sentence tells in full, with what to do: lines of the log would only hide it."""


class PreemptedError(Exception):
    """Raised by a worker that was asked to stop, after it saved its state."""


class InputArtifact:
    """A finished artifact that this worker reads."""

    def __init__(self, job: Job, role: str, record: InputRecord) -> None:
        self.role = role
        self.record = record
        self.artifact = Artifact(job.store, record.directory)
        self._cache = input_folder(job.spec.input_cache, record.key, record.digest)
        manifest = self.artifact.manifest()
        if manifest is None or manifest.digest != record.digest:
            raise ObjectMissingError(f"{self.artifact.uri} is not the artifact that {job.spec.label} was started with")
        self.manifest: Manifest = manifest

    @property
    def metrics(self) -> dict[str, Any]:
        return self.manifest.metrics

    def directory(self) -> Path:
        """A local folder with the artifact's files under their logical names, complete and checked; it stays as long as
        this process does."""
        keep_in_use(self._cache)
        return self.artifact.fetch(self.manifest, self._cache)

    def json(self, name: str) -> Any:
        """A small JSON object of the artifact, without fetching the rest."""
        return json.loads(self.bytes(name))

    def bytes(self, name: str) -> bytes:
        """One object's bytes, checked against the manifest."""
        entry = self.manifest.object(name)
        if entry is None:
            raise ObjectMissingError(f"{self.artifact.uri} ({self.role}) has no object {name}")
        data = self.artifact.store.get(self.artifact.path(entry.path))
        if sha256_hex(data) != entry.sha256:
            raise CorruptArtifactError(
                f"{self.artifact.uri}/{entry.path} has other bytes than were committed; delete its artifact's "
                f"manifest.json and this object's receipt, then run again"
            )
        return data


class Job:
    """One launch of one stage."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.recipe = spec.recipe
        self.runtime = spec.runtime
        self.store = open_store(spec.store)
        self.artifact = Artifact(self.store, spec.directory)
        self.scratch = Path(spec.scratch)
        self.scratch.mkdir(parents=True, exist_ok=True)
        self._digests = {role: record.digest for role, record in spec.inputs.items()}
        self.checkpoints = CheckpointFolder(self.artifact, spec.attempt, self._digests)
        self.rank = int(os.environ.get("RANK", "0"))
        self._stop_requested = False
        self._next_progress = 0.0
        self._events = (self.scratch / "events.jsonl").open("a", buffering=1) if self.rank == 0 else None
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, TO_RANKS_ALONE)

    def _on_sigterm(self, _signal: int, _frame: FrameType | None) -> None:
        self._stop_requested = True

    @property
    def stop_requested(self) -> bool:
        """Whether to save and call `preempted()`; long loops look at it between steps, or call `leave_if_asked()`.

        The runtime asks through a file, which ranks on other nodes see, too. A SIGTERM to this process, as whoever
        takes the node away sends it, counts as well.
        """
        return self._stop_requested or (self.scratch / STOP_FILE).exists()

    def input(self, role: str) -> InputArtifact:
        """The input with this role; raises KeyError with the roles there are."""
        if role not in self.spec.inputs:
            raise KeyError(f"{self.spec.stage} has no input {role!r}, only {sorted(self.spec.inputs)}")
        return InputArtifact(self, role, self.spec.inputs[role])

    def inputs(self, prefix: str) -> dict[str, InputArtifact]:
        """The inputs whose role is `prefix.<name>`, by name, in order."""
        start = f"{prefix}."
        return {role.removeprefix(start): self.input(role) for role in self.spec.inputs if role.startswith(start)}

    def new_directory(self, name: str) -> Path:
        """An empty folder in this launch's scratch space."""
        path = self.scratch / f"{name}-{uuid.uuid4().hex[:8]}"
        path.mkdir(parents=True)
        return path

    # Outputs

    def receipts(self) -> dict[str, ShardReceipt]:
        """The shards that this or an earlier launch finished, by name."""
        return self.artifact.receipts()

    def commit_shard(self, shard: str, directory: Path, metrics: dict[str, Any] | None = None) -> ShardReceipt:
        """Uploads all files below `directory` as `<shard>/<relative path>` and writes the shard's receipt.

        Returns the receipt that stands; it is another worker's if that one was first.
        """
        return self._commit(shard, directory, f"{shard}/", metrics or {}, ())

    def complete(self, directory: Path, metrics: dict[str, Any], covers: Sequence[str] = ()) -> ShardReceipt:
        """Finishes the artifact: the files below `directory` under their relative names, plus the shards in `covers`.

        `metrics` becomes the manifest's; gates are judged on it. It may hold times and rates: it is not in the digest.
        """
        return self._commit(MAIN_SHARD, directory, "", metrics, tuple(covers))

    def _commit(
        self, shard: str, directory: Path, prefix: str, metrics: dict[str, Any], covers: tuple[str, ...]
    ) -> ShardReceipt:
        # The ranks of a launch share its attempt; a shard may pass from one of them to another.
        writer = f"r{self.rank}-{self.spec.attempt}" if self.rank else self.spec.attempt
        base = f"data/{shard}-{writer}"
        objects = []
        for file in sorted(path for path in directory.rglob("*") if path.is_file()):
            name = file.relative_to(directory).as_posix()
            path = f"{base}/{name}"
            self.store.upload(file, self.artifact.path(path))
            objects.append(
                ObjectRecord(name=prefix + name, path=path, size=file.stat().st_size, sha256=file_sha256(file))
            )
        receipt = self.artifact.add_shard(
            ShardReceipt(
                shard=shard,
                write_id=uuid.uuid4().hex,
                objects=tuple(objects),
                inputs=self._digests,
                metrics=metrics,
                covers=covers,
            )
        )
        self._emit(Event(time=time.time(), kind="receipt", message=shard))
        return receipt

    # What others see while it runs

    def progress(self, done: float, total: float | None, unit: str, **values: Any) -> None:
        """How far the stage is; `values` are shown beside it, such as tokens_per_second."""
        self._next_progress = time.monotonic() + 1
        self._emit(Event(time=time.time(), kind="progress", done=done, total=total, unit=unit, values=values))

    def progress_each_second(self, done: float, total: float | None, unit: str, **values: Any) -> bool:
        """The same of quick steps: told a second after the last progress, and at the end. Returns whether it was."""
        if done != total and time.monotonic() < self._next_progress:
            return False
        self.progress(done, total, unit, **values)
        return True

    def metric(self, **values: Any) -> None:
        """One point of the stage's curves, such as step=10, loss=2.3."""
        self._emit(Event(time=time.time(), kind="metric", values=values))

    def log(self, message: str) -> None:
        """One sentence for people."""
        self._emit(Event(time=time.time(), kind="log", message=message))
        if self.rank == 0:
            print(message, file=sys.stderr, flush=True)

    def _emit(self, event: Event) -> None:
        if self._events is not None:
            clean = Event.model_validate(redact_record(event))
            self._events.write(clean.model_dump_json(exclude_defaults=True) + "\n")

    def leave_if_asked(self) -> None:
        """Between steps of a worker that has nothing to save: ends it if it was asked to stop."""
        if self.stop_requested:
            self.preempted()

    def preempted(self) -> NoReturn:
        """Ends a worker that was asked to stop and has saved its state."""
        raise PreemptedError


def _write_end(scratch: Path, code: int, message: str) -> None:
    """The first rank to fail says why; what the others then say is a consequence."""
    draft = scratch / f"{END_FILE}-{os.getpid()}"
    draft.write_text(json.dumps({"code": code, "message": redact(message)}))
    with suppress(FileExistsError):
        os.link(draft, scratch / END_FILE)


def worker_main(run: Callable[[Job], None]) -> NoReturn:
    """Runs a worker to its end and turns what happened into an exit code and a last line on stderr."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--spec", type=Path, required=True)
    # The deepspeed launcher adds this to every rank's command line; the rank itself comes from the environment.
    parser.add_argument("--local_rank", type=int, default=0)
    arguments = parser.parse_args()
    die_with_parent()
    stop_file = arguments.spec.with_name(STOP_FILE)
    watch_stdin(stop_file)
    watch_heartbeat(stop_file)
    spec = WorkerSpec.model_validate_json(arguments.spec.read_bytes())
    code, message = 0, ""
    try:
        run(Job(spec))
    except PreemptedError:
        code, message = EXIT_PREEMPTED, "saved its state and stopped"
    except MediusError as error:
        message = str(error)
        print(f"{type(error).__name__}: {message}", file=sys.stderr)
        code = EXIT_BAD_INPUT if error.exit_code == EXIT_BAD_INPUT else EXIT_SAID
        code = EXIT_TRANSIENT if error.retryable else code
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    if code:
        _write_end(Path(spec.scratch), code, message)
    # Skips interpreter teardown, where daemon threads of s3fs and torch now and then hang or abort.
    os._exit(code)
