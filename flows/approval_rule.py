"""From which cost on somebody is asked before a stage begins: the block `approval` of a profile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from tasks.artifacts.frozen import Frozen
from tasks.planning.hardware import hardware_table

PAUSE_KEY = "medius-approval-"
"""Begins the key of the pause in which a run waits for the answer; somebody may pause a run for other reasons."""


def is_asked_about(run: Mapping[str, Any]) -> bool:
    """Whether a flow run, as the server tells it, is paused for an approval, and not for something else."""
    key = (run["state"].get("state_details") or {}).get("pause_key")
    return run["state"]["type"] == "PAUSED" and key is not None and key.startswith(PAUSE_KEY)


class ApprovalRule(Frozen):
    """Thresholds for one stage's forecast of what it still takes; with both, either is enough."""

    above_gpu_hours: float | None = Field(None, ge=0)
    """Hours of accelerators, as in the column GPU h of `medius plan --cost`; processors do not count."""
    above_usd: float | None = Field(None, ge=0)
    """Price of the stage's devices, processors included."""
    prices: dict[str, float] = Field(default_factory=dict)
    """USD an hour of one device, by a name of tasks/planning/hardware.yaml; that file's own otherwise."""
    wait_hours: float = Field(72, gt=0, le=24 * 90)
    """How long a deployment's run waits for an answer before it ends."""

    @model_validator(mode="after")
    def _says_from_when_on(self) -> Self:
        if self.above_gpu_hours is None and self.above_usd is None:
            raise ValueError("give above_gpu_hours, above_usd or both, or leave `approval` out: then nobody is asked")
        for name, price in self.prices.items():
            if name not in hardware_table() or not 0 <= price < float("inf"):
                raise ValueError(
                    f"prices has {name}: {price}; give USD an hour of one device for one of "
                    f"{', '.join(hardware_table())}"
                )
        return self
