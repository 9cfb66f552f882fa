"""Seconds of a CUDA device, between two of its events."""

from __future__ import annotations

from collections.abc import Callable

import torch

CLOCK = "wall time until the device has finished"


class NoDeviceError(RuntimeError):
    """A row needs a CUDA device, and there is none."""


def require_cuda() -> str:
    """The device. Raises NoDeviceError."""
    if not torch.cuda.is_available():
        raise NoDeviceError("no CUDA device")
    return "cuda"


def seconds(action: Callable[[], object]) -> float:
    """Of one call, with everything that it has given the device to do."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    action()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1000
