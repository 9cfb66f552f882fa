"""The table of accelerators, and what is known of the device at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tasks.artifacts.errors import BadInputError
from tasks.planning import peak
from tasks.planning.hardware import OWN_TABLE, hardware_named, hardware_of_device, hardware_table
from tasks.planning.peak import UnknownPeakError, emulated_bfloat16, peak_of


def test_the_table_holds_dense_peaks() -> None:
    table = hardware_table()
    assert {"h100-sxm", "h200", "a100-80gb", "b200"} <= table.keys()
    for entry in (entry for entry in table.values() if entry.device_names):
        peaks = entry.peak_flops
        assert peaks["float32"] < peaks["tfloat32"] < peaks["bfloat16"] <= peaks.get("float8", peaks["bfloat16"])
        # Every tensor core of these makes twice as much of half the bits: a sparse figure among them would show.
        assert peaks["bfloat16"] == pytest.approx(2 * peaks["tfloat32"], rel=0.03)
    assert table["h200"].peak_flops == table["h100-sxm"].peak_flops
    names = [name for entry in table.values() for name in entry.device_names]
    assert len(names) == len(set(names))


def test_a_device_is_found_by_its_whole_name() -> None:
    found = hardware_of_device("NVIDIA H100 80GB HBM3")
    assert found is not None
    assert found.name == "h100-sxm"
    assert hardware_of_device("NVIDIA H100 PCIe") is None, "it is a third slower"
    with pytest.raises(BadInputError, match=r"use one of .*h200"):
        hardware_named("h300")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("gpu: {name: gpu, peak_flops: {bfloat16: 1e14}, source: x}", r"own\.yaml: gpu has a key name, .*; remove it"),
        (
            "gpu: {1: 2, peak_flops: {bfloat16: 1e14}, source: x}",
            r"own\.yaml: gpu\.1: .*; write it as .*hardware\.yaml",
        ),
        ("4090: {peak_flops: {bfloat16: 1e14}}", r"own\.yaml: 4090\.source: Field required; write it as"),
        ("gpu: fast", r"own\.yaml: gpu is no block of keys; write it as"),
        ("[gpu]", r"own\.yaml is no table of hardware; write one as"),
    ],
)
def test_a_table_of_ones_own_that_is_wrong_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, said: str
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(content)
    monkeypatch.setenv(OWN_TABLE, str(own))
    with pytest.raises(BadInputError, match=said):
        hardware_table()


def test_a_thread_takes_a_core_and_no_accelerator() -> None:
    assert hardware_named("cpu-core").devices_of(3) == 3
    assert hardware_named("h100-sxm").devices_of(3) == 1


def test_the_peak_of_a_named_and_of_an_unknown_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert peak_of(cpu, torch.bfloat16, "a100-80gb").flops_per_second == 312e12
    assert peak_of(cpu, torch.float32, "a100-80gb").flops_per_second == 19.5e12
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert peak_of(cpu, torch.float32, "a100-80gb").flops_per_second == 156e12
    with pytest.raises(UnknownPeakError, match=r"meta is not in .*hardware\.yaml; .* runtime\.hardware"):
        peak_of(torch.device("meta"), torch.bfloat16)


def test_a_cpu_is_measured() -> None:
    assert 1e8 < peak_of(torch.device("cpu"), torch.float32).flops_per_second < 1e14


def test_a_processor_that_is_slower_in_bfloat16_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {torch.float32: 57e9, torch.bfloat16: 1.25e9}
    monkeypatch.setattr(peak, "measured_flops", speeds.__getitem__)
    assert emulated_bfloat16() == (
        "this processor multiplies 1.25 GFLOP/s in bfloat16 and 57 in float32; float32 takes 45.6 times less of it"
    )
    speeds[torch.bfloat16] = 100e9
    assert emulated_bfloat16() is None
