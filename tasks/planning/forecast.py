"""What is said of one stage before it runs, and sums over stages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from tasks.planning.hardware import Hardware
from tasks.planning.quantities import HOUR, byte_size

RECORDS = 4
"""Objects of every artifact besides its content: manifest, receipt, log, verdict."""
FULL = 0.92
"""Part of a device's memory that can be used: the driver, the communication library and gaps take the rest."""
WORK = frozenset({"compute", "traffic", "waiting for the encoder", "waiting for the store"})
"""Of `seconds`: what a measured speed says."""
EVERY_LAUNCH = frozenset({"start", "weights", "export"})
"""Of `seconds`: what is taken whole, however little of a stage is left."""


@dataclass(frozen=True)
class Forecast:
    """One stage. Sizes in bytes, times in seconds."""

    tokens: float = 0
    """That the stage reads, computes or trains on."""
    flops: float = 0
    """That are executed: recomputation, padding and repeated passes included."""
    hardware: Hardware | None = None
    """None: a stage of processor work alone."""
    devices: int = 0
    """All of its accelerators, or all cores of its processes."""
    per_process: int = 1
    """Of these, one process's: more than one where its threads have a core each."""
    nodes: int = 1
    memory: Mapping[str, float] = field(default_factory=dict)
    """Bytes on one device by what holds them, `peak` among them: those that are held in the worst moment."""
    host_memory: float = 0
    """Bytes of one node's own memory."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """By what takes them; they add up."""
    stored: float = 0
    """Bytes that stay in the store."""
    scratch: float = 0
    """Bytes of the scratch folder at one time, of what is on its way into the store."""
    checkpoints: float = 0
    """Bytes that the store holds besides until the stage is finished."""
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

    def at_speed(self, tokens_per_second: float) -> Forecast:
        """With the time that its work takes at a measured speed; all else takes what it took."""
        others = {name: seconds for name, seconds in self.seconds.items() if name not in WORK}
        return replace(self, seconds={**others, "measured speed": self.tokens / tokens_per_second})

    def left(self, part: float, unstored: float) -> Forecast:
        """What is still to come of a stage that has begun, in another launch.

        Args:
            part: of its tokens.
            unstored: of its bytes and objects.
        """
        return replace(
            self,
            tokens=self.tokens * part,
            flops=self.flops * part,
            seconds={name: seconds * (1 if name in EVERY_LAUNCH else part) for name, seconds in self.seconds.items()},
            stored=self.stored * unstored,
            # New ones take the place of those that stand there.
            checkpoints=0.0,
            moved=self.moved * part,
            objects=math.ceil(self.objects * unstored),
        )

    def checked(self, node: Hardware) -> Forecast:
        """With a warning for each memory that does not hold what it must.

        Args:
            node: whose memory a stage without a device of its own has.
        """
        node = self.hardware or node
        warnings = [*self.warnings, *(self._devices_fault(self.hardware) if self.hardware is not None else ())]
        room = FULL * node.node_memory_bytes
        if self.host_memory > room:
            warnings.append(
                f"needs {byte_size(self.host_memory)} of a node's own memory and a node of {node.name} has "
                f"{byte_size(room)} to give"
            )
        return replace(self, warnings=tuple(warnings))

    def _devices_fault(self, hardware: Hardware) -> Iterator[str]:
        peak, room = self.memory.get("peak", 0.0), FULL * hardware.memory_bytes * self.per_process
        if peak > room:
            largest = max((name for name in self.memory if name != "peak"), key=lambda name: self.memory[name])
            where = f"on a device and {hardware.name} has"
            if self.per_process > 1:
                where = f"in a process and {self.per_process} × {hardware.name} have"
            yield (
                f"needs {byte_size(peak)} {where} {byte_size(room)} to give; most of it is {largest} "
                f"({byte_size(self.memory[largest])})"
            )
        per_node = self.devices / max(1, self.nodes)
        if hardware.accelerator and per_node > hardware.per_node:
            yield (
                f"starts {per_node:.0f} processes on a node, a node of {hardware.name} has {hardware.per_node} devices"
            )


def device_bandwidth(hardware: Hardware, nodes: int, utilisation: float) -> float:
    """Bytes/s that one device receives from the others of a stage, at this part of the bandwidth."""
    return utilisation * (hardware.network_bandwidth if nodes > 1 else hardware.link_bandwidth)
