"""What is said of one stage before it runs, and sums over stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tasks.planning.hardware import Hardware
from tasks.planning.quantities import HOUR, byte_size

RECORDS = 4
"""Objects of every artifact besides its content: manifest, receipt, log, verdict."""
FULL = 0.92
"""Part of a device's memory that can be used: the driver, the communication library and gaps take the rest."""


@dataclass(frozen=True)
class Forecast:
    """One stage. Sizes in bytes, times in seconds."""

    tokens: float = 0
    """That the stage reads, computes or trains on."""
    flops: float = 0
    """That are executed, recomputation included."""
    hardware: Hardware | None = None
    """None: a stage of processor work alone."""
    devices: int = 0
    """All of its accelerators (or cores)."""
    nodes: int = 1
    memory: Mapping[str, float] = field(default_factory=dict)
    """Bytes on one device by what holds them, `peak` among them: those that are held in the worst moment."""
    host_memory: float = 0
    """Bytes of one node's own memory."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """By what takes them; they add up."""
    stored: float = 0
    """Bytes that stay in the store."""
    moved: float = 0
    """Bytes that cross between nodes, hub and store."""
    objects: int = 0
    measured: str = ""
    """What of it was measured instead of computed; empty: nothing."""
    how: tuple[str, ...] = ()
    """The sums, so that they can be checked by hand."""
    warnings: tuple[str, ...] = ()

    @property
    def duration(self) -> float:
        """Seconds from start to end."""
        return sum(self.seconds.values())

    @property
    def device_hours(self) -> float:
        """Hours of accelerators; processor cores are not counted."""
        return self.devices * self.duration / HOUR if self.uses_accelerators else 0.0

    @property
    def uses_accelerators(self) -> bool:
        return self.hardware is not None and self.hardware.accelerator

    def usd(self, prices: Mapping[str, float]) -> float:
        """Of its devices; `prices`, by the hardware's name, take precedence over the table's."""
        if self.hardware is None:
            return 0.0
        price = prices.get(self.hardware.name, self.hardware.usd_per_hour)
        return self.devices * self.duration / HOUR * price

    def checked(self) -> Forecast:
        """With a warning for each memory that does not hold what it must."""
        if self.hardware is None:
            return self
        warnings = list(self.warnings)
        peak, room = self.memory.get("peak", 0.0), FULL * self.hardware.memory_bytes
        if peak > room:
            largest = max((name for name in self.memory if name != "peak"), key=lambda name: self.memory[name])
            warnings.append(
                f"needs {byte_size(peak)} on a device and {self.hardware.name} has {byte_size(room)} to give; most of "
                f"it is {largest} ({byte_size(self.memory[largest])})"
            )
        room = FULL * self.hardware.node_memory_bytes
        if self.host_memory > room:
            warnings.append(
                f"needs {byte_size(self.host_memory)} of a node's own memory and a node of {self.hardware.name} has "
                f"{byte_size(room)} to give"
            )
        per_node = self.devices / max(1, self.nodes)
        if self.uses_accelerators and per_node > self.hardware.per_node:
            warnings.append(
                f"starts {per_node:.0f} processes on a node, a node of {self.hardware.name} has "
                f"{self.hardware.per_node} devices"
            )
        return replace(self, warnings=tuple(warnings))


def device_bandwidth(hardware: Hardware, nodes: int) -> float:
    """Bytes/s that one device receives from the others of a training."""
    return hardware.network_bandwidth if nodes > 1 else hardware.link_bandwidth
