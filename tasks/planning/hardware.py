"""The table of accelerators: what each can compute in a second, hold, move and cost. Knows no torch."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.frozen import Frozen

TABLE = Path(__file__).with_name("hardware.yaml")
OWN_TABLE = "MEDIUS_HARDWARE"
"""Environment variable with the path of a further table, whose entries come before those of TABLE."""
CPU_CORE = "cpu-core"
Arithmetic = Literal["bfloat16", "float8", "tfloat32", "float32"]
"""How products are computed; tfloat32 stands for float32 operands rounded to ten bits of mantissa."""


class Hardware(Frozen):
    """One device, as its maker's data sheet describes it, in a node of several. Only the peaks are always there."""

    name: str
    device_names: tuple[str, ...] = ()
    """What `torch.cuda.get_device_name` says of it."""
    accelerator: bool = True
    """False: a core of a processor, which counts as no GPU."""
    peak_flops: dict[Arithmetic, Annotated[float, Field(gt=0)]] = Field(min_length=1)
    """FLOP/s of dense matrix products."""
    memory_bytes: float = Field(80e9, gt=0)
    memory_bandwidth: float = Field(2e12, gt=0)
    link_bandwidth: float = Field(50e9, gt=0)
    """Bytes/s to the other devices of its node, in one direction."""
    network_bandwidth: float = Field(12.5e9, gt=0)
    """Bytes/s to other nodes."""
    per_node: int = Field(8, ge=1)
    node_memory_bytes: float = Field(1e12, gt=0)
    """Of a node's processors, for all its devices."""
    usd_per_hour: float = Field(0.0, ge=0)
    """Of one device; an assumption to edit."""
    source: str

    def peak(self, arithmetic: Arithmetic) -> float:
        """FLOP/s; of what it cannot do itself those of the next wider arithmetic, as the software would do."""
        wider: tuple[Arithmetic, ...] = ("float8", "bfloat16", "tfloat32", "float32")
        for name in wider[wider.index(arithmetic) :]:
            if name in self.peak_flops:
                return self.peak_flops[name]
        return max(self.peak_flops.values())

    def devices_of(self, threads: int) -> int:
        """How many of these a process with `threads` threads takes: a core a thread, or one accelerator."""
        return 1 if self.accelerator else threads


def hardware_table() -> dict[str, Hardware]:
    """All devices by name: the user's own first.

    Raises:
        BadInputError: the user's table cannot be read.
    """
    path = os.environ.get(OWN_TABLE)
    own = _table(Path(path).expanduser()) if path else {}
    return {**own, **{name: entry for name, entry in _table(TABLE).items() if name not in own}}


@cache
def _table(path: Path) -> dict[str, Hardware]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert isinstance(content, dict)
    except (OSError, yaml.YAMLError, UnicodeDecodeError, AssertionError) as error:
        raise BadInputError(f"{path} is no table of hardware; write one as {TABLE} is") from error
    return {str(name): _entry(path, str(name), fields) for name, fields in content.items()}


def _entry(path: Path, name: str, fields: Any) -> Hardware:
    if not isinstance(fields, dict):
        raise BadInputError(f"{path}: {name} is no block of keys; write it as {TABLE} does")
    if "name" in fields:
        raise BadInputError(f"{path}: {name} has a key name, but is called by the key that it stands under; remove it")
    try:
        return Hardware.model_validate({**fields, "name": name})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join((name, *(str(part) for part in first["loc"])))
        raise BadInputError(f"{path}: {where}: {first['msg']}; write it as {TABLE} does") from error


def hardware_named(name: str) -> Hardware:
    """The entry of this name.

    Raises:
        BadInputError: there is none.
    """
    table = hardware_table()
    if name not in table:
        raise BadInputError(f"hardware {name!r} is not in {TABLE}; use one of {', '.join(table)}, or add it there")
    return table[name]


def hardware_of_device(device_name: str) -> Hardware | None:
    """The entry of a device by what torch calls it, or None."""
    return next((entry for entry in hardware_table().values() if device_name in entry.device_names), None)
