"""What a stage cost, at the prices of tasks/planning/hardware.yaml, where it ran on hardware that is in there."""

from __future__ import annotations

from tasks.artifacts.manifest import Provenance
from tasks.planning.hardware import CPU_CORE, Hardware, hardware_named, hardware_of_device
from tasks.planning.quantities import HOUR

UNKNOWN = "no price known for this hardware"


def cost_usd(provenance: Provenance) -> float | None:
    """USD of the launch that finished a stage: its hours times its devices; None where no price is known.

    A process counts as one accelerator, or, on a processor, as as many cores as it has threads.
    """
    runtime = provenance.runtime
    processes = int(runtime.get("num_processes", 1)) * int(runtime.get("num_nodes", 1))
    hardware = _hardware(provenance)
    if hardware is None:
        return None
    devices = processes if hardware.accelerator else processes * int(runtime.get("threads", 1))
    return provenance.seconds / HOUR * devices * hardware.usd_per_hour


def _hardware(provenance: Provenance) -> Hardware | None:
    found = provenance.hardware.get("accelerators")
    device = provenance.runtime.get("device")
    if device == "cpu":
        return hardware_named(CPU_CORE)
    if not isinstance(found, list):
        return None
    # With several nodes the others may have what the one that wrote this has not.
    if not found and device != "cuda" and int(provenance.runtime.get("num_nodes", 1)) == 1:
        return hardware_named(CPU_CORE)
    return hardware_of_device(found[0]) if len(set(found)) == 1 else None
