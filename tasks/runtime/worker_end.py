"""What the end of a worker's processes means: done, to be tried again, or to be mended by somebody."""

from __future__ import annotations

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError, TransientStoreError, WorkerFailedError, WorkerInterruptedError
from tasks.artifacts.manifest import MAIN_SHARD
from tasks.runtime.launch import WorkerProcess
from tasks.worker.job import EXIT_BAD_INPUT, EXIT_PREEMPTED, EXIT_SAID, EXIT_TRANSIENT

_INTERRUPTED = (
    "Signal 9 (SIGKILL)", "Signal 15 (SIGTERM)", "exits with return code = -9", "exits with return code = -15",
    "Connection closed by peer", "Connection reset by peer", "Connection was likely closed", "remote process exit",
    "Timed out waiting", "collective operation timeout", "Connection timed out", "No route to host",
)  # fmt: skip
"""What torchrun and deepspeed print of a killed rank, and what gloo, torch's store and NCCL say of a lost peer, in
the kernel's words where its host is cut off. A rank ends its connections only after it wrote its end: its own error
comes before those of its peers."""
_OF_CONNECTIONS = (
    "Connection closed by peer", "Connection reset by peer", "Connection was likely closed", "Broken pipe",
    "Timed out waiting", "collective operation timeout", "Connection timed out", "No route to host",
    "gloo", "NCCL", "DistNetworkError", "DistStoreError",
)  # fmt: skip
"""In the last sentence of a rank that may have done nothing wrong but lose a peer."""
_NO_ROOM = ("No space left on device", "Disk quota exceeded")
_OUT_OF_MEMORY = ("out of memory", "OutOfMemoryError", "MemoryError", "can't allocate memory")


def raise_for_end(label: str, artifact: Artifact, process: WorkerProcess, code: int) -> None:
    """Turns a worker's end into the error that says whether a retry makes sense."""
    # A store that is away must not hide what the worker said.
    if code == 0 and artifact.store.exists(artifact.path(f"shards/{MAIN_SHARD}.json")):
        return
    tail = process.log_tail()
    said, evidence = "", tail
    if (end := process.end()) is not None:
        code, said = end
        # What others print after a definite error is its consequence. A rank that is killed writes no end, so that
        # the first one is of a peer that lost it: then the launcher's report counts.
        evidence = f"{said}\n{tail}" if any(sign in said for sign in _OF_CONNECTIONS) else said
    last = said or next((line for line in reversed(tail.splitlines()) if line.strip()), "it printed nothing")
    # First, where lists of runs look; the launcher's own report may fill the whole tail.
    reason = f"{said}\n" if said else ""
    logs = f"{artifact.uri}/logs"
    if code == EXIT_BAD_INPUT:
        raise BadInputError(f"{label}: {last}")
    if code == EXIT_PREEMPTED:
        raise WorkerInterruptedError(f"{label} was preempted and saved its state; a retry goes on from there")
    if code == EXIT_TRANSIENT:
        raise TransientStoreError(f"{label}: {last}")
    if any(sign.lower() in evidence.lower() for sign in _OUT_OF_MEMORY):
        raise WorkerFailedError(
            f"{label}: {reason}It ran out of memory; lower its micro-batch or chunk size in the profile's runtime "
            f"block (log: {logs}).\n{tail}"
        )
    if (full := next((sign for sign in _NO_ROOM if sign in evidence), None)) is not None:
        raise WorkerFailedError(
            f"{label}: {full}; make room on the disk of the scratch folder, of the inputs or of the store, and run the "
            f"same command again: finished shards and checkpoints are kept (log: {logs})"
        )
    if code < 0 or any(sign in evidence for sign in _INTERRUPTED):
        killed = f"it lost one of its processes or a connection: {said}" if said else "its process was killed"
        raise WorkerInterruptedError(
            f"{label}: {killed} (exit {code}); if nobody did that, the kernel may have, for want of memory. "
            f"A retry goes on from the last checkpoint or shard (log: {logs}).\n{tail}"
        )
    if code == EXIT_SAID:
        raise WorkerFailedError(f"{label}: {last} (log: {logs})")
    raise WorkerFailedError(
        f"{label}: {reason}Its worker ended with exit code {code}. Last lines of {logs}:\n{tail}\nMend the cause "
        f"and run the same command again; finished shards and checkpoints are kept."
    )
