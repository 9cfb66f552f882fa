"""How fast a training runs: tokens a second, model FLOPs utilisation, time spent waiting for data, padding.

Volatile: it differs from launch to launch and counts for nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from typing import Any

import torch

from tasks.artifacts.errors import BadInputError
from tasks.planning.flops import ModelShape, model_shape, training_flops
from tasks.planning.hardware import hardware_named
from tasks.planning.peak import UnknownPeakError, emulated_bfloat16, peak_of
from tasks.training.settings import Learning

RECENT = 20
"""Steps whose mean is shown as the present speed."""


@dataclass(frozen=True)
class StepWork:
    """What one optimiser step took. Tokens and pairs are of all processes together, times this process's.

    num_pairs: pairs of a token and one that it attends to (`tasks.planning.flops.causal_pairs`).
    """

    num_tokens: int
    num_targets: int
    num_padded: int
    num_pairs: int
    seconds: float
    """From asking for the step's data to the weights' update."""
    wait_seconds: float
    """Of these, until the data was there."""
    learning: Learning = "all"
    num_taught: int | None = None
    """Targets with a teacher, where only some have one."""


@dataclass
class _Sums:
    seconds: float = 0.0
    wait_seconds: float = 0.0
    tokens: int = 0
    targets: int = 0
    padded: int = 0
    flops: float = 0.0
    steps: int = 0

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))


class Throughput:
    """Sums up steps and says their rates: since the last line, lately, and since the launch began."""

    def __init__(self, shape: ModelShape | None = None, peak_flops: float | None = None) -> None:
        """`peak_flops` is of all processes together; without it or without `shape` there is no utilisation."""
        self._shape = shape
        self._peak = peak_flops
        self._line, self._total = _Sums(), _Sums()
        self._recent: deque[_Sums] = deque(maxlen=RECENT)

    def step(self, work: StepWork) -> None:
        """Takes in one step."""
        sums = _Sums(
            work.seconds, work.wait_seconds, work.num_tokens, work.num_targets, work.num_padded, self._flops(work), 1
        )
        self._line += sums
        self._total += sums
        self._recent.append(sums)

    def line(self) -> dict[str, float]:
        """Rates since this was last asked."""
        line, self._line = self._line, _Sums()
        return self._rates(line)

    def recent(self) -> dict[str, float]:
        """Rates of the last 20 steps."""
        return self._rates(sum(self._recent, _Sums()))

    def total(self) -> dict[str, float]:
        """Rates since the launch began."""
        return self._rates(self._total)

    def _flops(self, work: StepWork) -> float:
        if self._shape is None:
            return 0.0
        return training_flops(
            self._shape,
            num_tokens=work.num_tokens,
            num_targets=work.num_targets,
            num_pairs=work.num_pairs,
            frozen_layers=work.learning == "embedding",
            frozen_head=work.learning == "layers",
        )

    def _rates(self, sums: _Sums) -> dict[str, float]:
        if not sums.steps:
            return {}
        seconds = max(sums.seconds, 1e-9)
        rates = {
            "tokens_per_second": sums.tokens / seconds,
            "targets_per_second": sums.targets / seconds,
            "seconds_per_step": sums.seconds / sums.steps,
            "data_wait": sums.wait_seconds / seconds,
            "padding": sums.padded / max(1, sums.tokens + sums.padded),
        }
        if self._shape is not None and self._peak is not None:
            rates["mfu"] = sums.flops / seconds / self._peak
        return rates


def throughput_of(
    config: Mapping[str, Any],
    *,
    device: torch.device,
    dtype: torch.dtype,
    world_size: int,
    hardware: str | None,
    say: Callable[[str], None],
) -> Throughput:
    """The throughput of a model with this config.json on `world_size` devices like this one.

    `hardware` is `TrainingRuntime.hardware`. Where FLOPs or peak are unknown, `say` is told why and what to set, and no
    utilisation is shown.

    Raises:
        BadInputError: no hardware has this name.
    """
    if hardware is not None:
        hardware_named(hardware)
    if device.type == "cpu" and dtype is torch.bfloat16 and (slower := emulated_bfloat16()) is not None:
        say(f"{slower}; set recipe.precision to float32 unless this is a rehearsal")
    try:
        shape = model_shape(config)
        peak = peak_of(device, dtype, hardware)
    except (BadInputError, UnknownPeakError) as error:
        say(f"no FLOPs utilisation is shown: {error}")
        return Throughput()
    say(f"FLOPs utilisation is against {peak.name}: {world_size} × {peak.flops_per_second / 1e12:.4g} TFLOP/s")
    return Throughput(shape, world_size * peak.flops_per_second)
