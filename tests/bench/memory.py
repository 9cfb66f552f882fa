"""Resident memory of this process, from Linux's /proc."""

from __future__ import annotations

from pathlib import Path


def resident_bytes() -> int:
    """Now."""
    return _field("VmRSS")


def peak_bytes() -> int:
    """The most since `reset_peak` or the start."""
    return _field("VmHWM")


def reset_peak() -> None:
    """Makes the present size the peak."""
    Path("/proc/self/clear_refs").write_text("5")


def _field(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}; memory is measured on Linux")
