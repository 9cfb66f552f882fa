"""What a manifest says of the machine."""

from __future__ import annotations

from pathlib import Path

from tasks.runtime.provenance import accelerators


def test_accelerators_are_named_as_the_driver_does(tmp_path: Path) -> None:
    assert accelerators(tmp_path) == []
    for bus, name in (("0000:01:00.0", "NVIDIA H100 80GB HBM3"), ("0000:02:00.0", "NVIDIA H200")):
        (tmp_path / bus).mkdir()
        lines = f"Model: \t\t {name}\nIRQ:   \t\t 33\nGPU UUID: \t GPU-1\n"
        (tmp_path / bus / "information").write_text(lines)
    assert accelerators(tmp_path) == ["NVIDIA H100 80GB HBM3", "NVIDIA H200"]
