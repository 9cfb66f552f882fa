"""What the device of this process can compute at most: from the table, or for a processor measured."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache

import torch

from tasks.artifacts.errors import MediusError
from tasks.planning.hardware import TABLE, Arithmetic, hardware_named, hardware_of_device

_SIZE = 512
"""Of the measured product: 0.27 GFLOP, which is 5 ms on one core, and 1 MB a matrix in float32."""
_MEASURE_SECONDS = 0.1


class UnknownPeakError(MediusError):
    """Nobody has said what this device can compute. Costs a figure in the log, never the run."""


@dataclass(frozen=True)
class Peak:
    """Most FLOP/s of one device, and of what."""

    name: str
    flops_per_second: float


def peak_of(device: torch.device, dtype: torch.dtype, named: str | None = None) -> Peak:
    """The peak of `device` for products of `dtype` (float32 or bfloat16).

    `named` is an entry of hardware.yaml that takes precedence over the device's own name. A CPU is measured once,
    which takes 0.1 s, with the threads that torch has here.

    Raises:
        BadInputError: no entry is called `named`.
        UnknownPeakError: the device is not in the table; the message says what to do.
    """
    if named is None and device.type == "cpu":
        return Peak("the measured peak of this CPU", measured_flops(dtype))
    arithmetic = _arithmetic(dtype)
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    entry = hardware_named(named) if named is not None else hardware_of_device(device_name)
    if entry is None:
        raise UnknownPeakError(
            f"{device_name} is not in {TABLE}; add it there, or set runtime.hardware to a name in it"
        )
    if arithmetic not in entry.peak_flops:
        raise UnknownPeakError(f"{entry.name} has no peak for {arithmetic} in {TABLE}; add it there")
    return Peak(f"{entry.name} in {arithmetic}", entry.peak_flops[arithmetic])


def _arithmetic(dtype: torch.dtype) -> Arithmetic:
    if dtype == torch.bfloat16:
        return "bfloat16"
    return "float32" if torch.get_float32_matmul_precision() == "highest" else "tfloat32"


def emulated_bfloat16() -> str | None:
    """A sentence for whoever computes in bfloat16 on a processor that is slower in it than in float32, else None.

    A processor without instructions for it converts every factor: 45 times slower on one with AVX2 alone.
    """
    wide, narrow = measured_flops(torch.float32), measured_flops(torch.bfloat16)
    if narrow >= wide:
        return None
    return (
        f"this processor multiplies {narrow / 1e9:.3g} GFLOP/s in bfloat16 and {wide / 1e9:.3g} in float32; "
        f"float32 takes {wide / narrow:.3g} times less of it"
    )


@cache
def measured_flops(dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of the square matrix products that fit into 0.1 s, at least three.

    The fastest, not the mean: on a machine that others use too, the mean is what was left, and a share of it could
    exceed 1.
    """
    left, right = (torch.rand(_SIZE, _SIZE).to(dtype) for _ in range(2))
    best, start, repetitions = float("inf"), time.perf_counter(), 0
    while repetitions < 3 or time.perf_counter() - start < _MEASURE_SECONDS:
        before = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - before)
        repetitions += 1
    return 2 * _SIZE**3 / best
