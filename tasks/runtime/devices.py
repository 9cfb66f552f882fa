"""Which of this host's accelerators a worker has to itself.

Two teachers on one device do not fit, and CUDA would begin every worker at the first one. Each device has a lock file
of this user's; whoever holds the lock has the device, and a worker's keeper holds it with the process that launched it:
the kernel gives a lock back when the last of both has ended, however that came. What other users or programs run on a
device is not known here; CUDA_VISIBLE_DEVICES says which ones there are for medius. In a Slurm job they are numbered
from 0 whichever they are, and no other job has them, so the locks are the job's own.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tasks.artifacts.errors import BadInputError
from tasks.runtime.declare import Runtime, Step
from tasks.runtime.provenance import accelerators

VISIBLE = "CUDA_VISIBLE_DEVICES"
DRIVER = Path("/proc/driver/nvidia/gpus")
"""A folder for each of NVIDIA's devices, named after its PCI address, in whose order they are numbered."""
_NAME = re.compile(r"\d+|(GPU|MIG)-[\w/-]+")


@dataclass(frozen=True)
class Devices:
    """What a worker has to itself until the block ends in which it was given."""

    names: tuple[str, ...] = ()
    """As CUDA_VISIBLE_DEVICES names them; none where it computes on processors or on nodes of its own."""
    locks: tuple[int, ...] = ()
    """Descriptors of the lock files, for the processes that outlive this one."""


def visible_devices() -> tuple[str, ...]:
    """This host's accelerators, as far as this process may use them."""
    given = os.environ.get(VISIBLE)
    if given is None:
        return tuple(str(number) for number in range(len(accelerators())))
    names = []
    for name in given.split(","):
        # As CUDA reads it: what comes behind a name that is none does not count.
        if not _NAME.fullmatch(name.strip()):
            break
        names.append(name.strip())
    return tuple(names)


@contextmanager
def devices_for(step: Step) -> Iterator[Devices | None]:
    """`devices_of` a step's worker, which needs none where its stage computes on processors.

    Raises:
        BadInputError: it needs more than there are.
    """
    if not step.stage.accelerated:
        yield Devices()
        return
    with devices_of(step.config.runtime, step.label) as devices:
        yield devices


@contextmanager
def devices_of(runtime: Runtime, label: str) -> Iterator[Devices | None]:
    """Takes the accelerators that a worker needs, all or none; None where others have them. `label` is what messages
    call it.

    A launch over several nodes takes all of this host: of its nodes only the launching one is known here, and two such
    launches would meet on all.

    Raises:
        BadInputError: it needs more than there are.
    """
    visible = visible_devices()
    if runtime.device == "cpu" or not visible:
        yield Devices()
        return
    alone = runtime.num_nodes == 1
    wanted = runtime.num_processes if alone else len(visible)
    if wanted > len(visible):
        raise BadInputError(
            f"{label} needs {wanted} accelerators on one host (runtime.num_processes), and here are "
            f"{len(visible)}: {', '.join(visible)}; lower num_processes, or give the stage a runtime.pool whose "
            f"machines have as many"
        )
    taken: dict[str, int] = {}
    try:
        with _taking(_folder()) as folder:
            for name in visible:
                if len(taken) < wanted and (lock := _locked(folder / f"{_identity(name)}.lock")) is not None:
                    taken[name] = lock
        if len(taken) < wanted:
            for lock in taken.values():
                os.close(lock)
            taken = {}
            yield None
            return
        names = tuple(map(_number, taken) if runtime.launcher == "deepspeed" else taken)
        yield Devices(names if alone else (), tuple(taken.values()))
    finally:
        for lock in taken.values():
            os.close(lock)


def _uuids() -> list[str]:
    """Of NVIDIA's devices, by number."""
    found = []
    for file in sorted(DRIVER.glob("*/information")):
        lines = file.read_text(errors="replace").splitlines()
        found += [line.partition(":")[2].strip() for line in lines if line.startswith("GPU UUID")]
    return found


def _identity(name: str) -> str:
    """The same for one device, whether it is named by number, UUID or the beginning of that."""
    uuids = _uuids()
    if name.isdigit():
        return uuids[int(name)] if int(name) < len(uuids) else name
    return next((uuid for uuid in uuids if uuid.startswith(name)), name.replace("/", "-"))


def _number(name: str) -> str:
    """What deepspeed's runner calls a device: it takes numbers, and overwrites CUDA_VISIBLE_DEVICES with them.

    Raises:
        BadInputError: the device has none, such as a part of one.
    """
    uuids = _uuids()
    if name.isdigit():
        return name
    if (uuid := _identity(name)) in uuids:
        return str(uuids.index(uuid))
    raise BadInputError(
        f"{VISIBLE} names {name}, and deepspeed's launcher takes devices by number; set runtime.launcher to torchrun, "
        f"or give numbers"
    )


def _folder() -> Path:
    job = os.environ.get("SLURM_JOB_ID", "")
    folder = Path(tempfile.gettempdir()) / f"medius-devices-{os.getuid()}{f'-job-{job}' if job.isalnum() else ''}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@contextmanager
def _taking(folder: Path) -> Iterator[Path]:
    """One process at a time takes: two of them with half of the devices each would both go without."""
    guard = os.open(folder / "taking.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(guard)


def _locked(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    os.close(descriptor)
    return None
