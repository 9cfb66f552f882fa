"""What a stage cost: its devices at the prices of tasks/planning/hardware.yaml, where it ran on hardware that is in
there, and the endpoints that it called at the prices of its runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.artifacts.manifest import Manifest, Provenance
from tasks.planning.hardware import CPU_CORE, Hardware, hardware_named, hardware_of_device
from tasks.planning.quantities import HOUR, money
from tasks.publish.page.material import StageRecord
from tasks.publish.tables import MISSING, Table

UNKNOWN = "no price known for this hardware"
UNKNOWN_SUM = "unknown"


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


def endpoint_usd(metrics: Mapping[str, Any]) -> float | None:
    """USD that all launches of a stage paid to an endpoint; None where it called none or its models have no price."""
    paid = metrics.get("cost_usd")
    return float(paid) if isinstance(paid, int | float) else None


def total_table(records: Sequence[StageRecord]) -> Table:
    """What finished stages cost together: their devices, the endpoints they called, the sum, and what is in neither."""
    devices: list[float] = []
    endpoints: list[float] = []
    unpriced, resumed, free = [], [], []
    finished = [(record, record.manifest) for record in records if record.manifest is not None]
    for record, manifest in finished:
        own = cost_usd(manifest.provenance)
        if own is None:
            unpriced.append(record.label)
        else:
            devices.append(own)
            resumed += [record.label] if record.launches > 1 else []
        if manifest.metrics.get("calls"):
            paid = endpoint_usd(manifest.metrics)
            free += [record.label] if paid is None or _unpriced_models(manifest) else []
            endpoints += [] if paid is None else [paid]
    lost = [*_left_out("no price known for the hardware of", unpriced), *_left_out("other launches of", resumed)]
    rows = [_line(f"devices of {len(devices)} of {len(finished)} stages", devices, lost)]
    if endpoints or free:
        uncounted = _left_out("no price given for calls of", free)
        rows.append(_line("endpoints, all launches", endpoints, uncounted))
        rows.append(_line("together", [*devices, *endpoints], [*lost, *uncounted]))
    return Table(("what", "USD", "not in it"), tuple(rows))


def _unpriced_models(manifest: Manifest) -> set[str]:
    """The models that a stage's recipe has called and its endpoint's prices lack."""
    source = manifest.recipe.get("source") or {}
    prices = (manifest.provenance.runtime.get("endpoint") or {}).get("prices") or {}
    roles = (source.get(role) or {} for role in ("evolver", "optimiser", "answerer", "judge"))
    return {role["model"] for role in roles if "model" in role} - set(prices)


def _line(what: str, parts: Sequence[float], left_out: Sequence[str]) -> tuple[str, str, str]:
    """What is left out can only add to a sum."""
    told = f"{'at least ' if left_out else ''}{money(sum(parts))}" if parts else UNKNOWN_SUM
    return what, told, "; ".join(left_out) or MISSING


def _left_out(why: str, labels: Sequence[str]) -> list[str]:
    return [f"{why} {', '.join(labels)}"] if labels else []


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
