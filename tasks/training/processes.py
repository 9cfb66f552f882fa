"""The processes of one training: how they find each other, their device, how they agree on a value, and how they wait.

What all of them do in step waits in a collective, whose limit is fixed. What one does for as long as it takes (fetch or
convert hundreds of gigabytes) is `each`'s: those at work say every few seconds that they live.

Must be joined before DeepSpeed is imported: which accelerator it uses is decided by an environment variable then.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from tasks.artifacts.errors import BadInputError
from tasks.training.settings import TrainingRuntime

Value = TypeVar("Value")
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""Of what all processes do in step: they load a model, or write a checkpoint, not equally fast."""
BEAT_SECONDS = 5.0
"""How often a process at work says that it lives."""
SILENCE = timedelta(minutes=5)
"""After which such a process counts as dead. One that is killed is noticed at once, by its closed connections; one that
is frozen, or whose host is gone, only by its silence."""


@dataclass(frozen=True)
class Processes:
    """This process among its peers."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    beats: dist.ProcessGroup | None = field(default=None, repr=False, compare=False)
    """All of them, in collectives that last no longer than `SILENCE`; None for one process."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Waits for all processes."""
        self.any(False)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        # Of a stated type: torch's default is another one while a thread loads a model.
        return bool(self.sum(torch.tensor([float(flag)], dtype=torch.float32))[0])

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over processes, on the CPU."""
        values = values.cpu()
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def from_main(self, value: Value) -> Value:
        """The main process's value on every process."""
        holder = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(holder, src=0, device=torch.device("cpu"))
        return holder[0]

    def each(self, work: Callable[[], Value] | None) -> Value | None:
        """Returns on every process when all have done their work, however long that takes; None is none.

        Of several processes the work runs on a thread of its own, and must not use collectives.

        Raises:
            Exception: what this process's work raised. The others wait for its end.
            RuntimeError: another process died, or said nothing for `SILENCE`.
        """
        if self.world_size == 1:
            return None if work is None else work()
        self.barrier()
        if work is None:
            return self._settle(None)
        worker = ThreadPoolExecutor(1, thread_name_prefix="each")
        try:
            return self._settle(worker.submit(work))
        finally:
            # Not waited for: where another process is gone there is nobody to finish it for.
            worker.shutdown(wait=False)

    def settle(self, work: Future[Value] | None) -> Value | None:
        """The same for work that has begun on a thread."""
        if self.world_size > 1:
            self.barrier()
        return self._settle(work)

    def _settle(self, work: Future[Value] | None) -> Value | None:
        """After a barrier, since processes come here at different times and a beat is waited for not as long."""
        busy = self.world_size > 1
        while busy:
            done = work is None or work in wait([work], BEAT_SECONDS).done
            if work is not None and done and work.exception() is not None:
                break
            still = torch.tensor([not done], dtype=torch.int32)
            dist.all_reduce(still, group=self.beats)
            busy = bool(still[0])
        return None if work is None else work.result()


def join(runtime: TrainingRuntime, scratch: Path) -> Processes:
    """Joins the process group that the launcher's environment describes; without a launcher, a group of one.

    Raises:
        BadInputError: the number of processes is not the configured one, CUDA is asked for and missing, or the
            processes do not share the scratch folder through which checkpoints are collected.
    """
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise BadInputError("runtime.device is cuda, but torch finds no CUDA device; install a CUDA build or use cpu")
    on_cuda = runtime.device != "cpu" and torch.cuda.is_available()
    os.environ["DS_ACCELERATOR"] = "cuda" if on_cuda else "cpu"
    launched = "WORLD_SIZE" in os.environ
    # DeepSpeed reads these, too; a group of one meets in a file of this launch alone, so that no port can clash.
    rank = int(os.environ.setdefault("RANK", "0"))
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    world_size = int(os.environ.setdefault("WORLD_SIZE", "1"))
    if world_size != runtime.num_processes * runtime.num_nodes:
        raise BadInputError(
            f"{world_size} process(es) were started where num_processes is {runtime.num_processes} and num_nodes "
            f"{runtime.num_nodes}; use the launcher torchrun or deepspeed for more than one"
        )
    if on_cuda:
        torch.cuda.set_device(local_rank)
        _sum_in_one_order()
    if not dist.is_initialized():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
            init_method="env://" if launched and world_size > 1 else (scratch / "rendezvous").absolute().as_uri(),
            rank=rank,
            world_size=world_size,
            timeout=COLLECTIVE_TIMEOUT,
        )
    processes = Processes(
        rank,
        local_rank,
        world_size,
        torch.device("cuda", local_rank) if on_cuda else torch.device("cpu"),
        dist.new_group(backend="gloo", timeout=SILENCE) if world_size > 1 else None,
    )
    _check_scratch(processes, scratch)
    return processes


def _sum_in_one_order() -> None:
    """Has CUDA compute the same bits in every run.

    The backward pass of attention under an explicit mask, as packed rows have, adds in any order otherwise. An operator
    of which torch knows no such version raises from here on. Going by torch's list, and not run on a GPU, there is none
    in a training step: the head's scatter_add_, the embedding's and index_select's gradients have one.
    """
    # The launcher sets it, too; torch refuses products without it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # With warn_only that attention would warn and still add in any order.
    torch.use_deterministic_algorithms(True)
    # It would fill each new tensor with NaN, which nothing here reads.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _check_scratch(processes: Processes, scratch: Path) -> None:
    (scratch / f"rank-{processes.rank}").touch()
    processes.barrier()
    if len(list(scratch.glob("rank-*"))) != processes.world_size:
        raise BadInputError(
            f"the processes do not share the scratch folder {scratch}; put it on a file system that all nodes mount"
        )
