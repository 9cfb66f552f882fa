"""The table of accelerators: what each can compute in a second. Knows no torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.frozen import Frozen

TABLE = Path(__file__).with_name("hardware.yaml")
Arithmetic = Literal["bfloat16", "float8", "tfloat32", "float32"]
"""How products are computed; tfloat32 stands for float32 operands rounded to ten bits of mantissa."""


class Hardware(Frozen):
    """One accelerator, as its maker's data sheet describes it."""

    name: str
    device_names: tuple[str, ...]
    """What `torch.cuda.get_device_name` says of it."""
    peak_flops: dict[Arithmetic, float] = Field(min_length=1)
    """FLOP/s of dense matrix products."""
    source: str


@cache
def hardware_table() -> dict[str, Hardware]:
    """All accelerators of hardware.yaml by name."""
    content = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return {name: Hardware(name=name, **entry) for name, entry in content.items()}


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
