"""Warnings, assumptions, amounts of text and numbers in words: by hand."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.artifacts.errors import BadInputError
from tasks.planning.assumptions import assumptions, start_seconds, utilisation_of
from tasks.planning.forecast import Forecast, device_bandwidth
from tasks.planning.generation import Reading, writing_seconds
from tasks.planning.hardware import hardware_named
from tasks.planning.quantities import byte_size, figure, money, span
from tasks.planning.text import Documents, tokens_of_bytes

H100, CORE = hardware_named("h100-sxm"), hardware_named("cpu-core")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"memory": {"weights": 70e9, "head": 2e9, "peak": 72e9}}, ""),
        ({"memory": {"weights": 70e9, "head": 9e9, "peak": 79e9}}, "79 GB on a device .* 73.6 GB .* weights (70 GB)"),
        ({"host_memory": 1.9e12}, "1.9 TB of a node's own memory .* 1.84 TB to give"),
        ({"devices": 16}, "starts 16 processes on a node, a node of h100-sxm has 8"),
        ({"devices": 16, "nodes": 2}, ""),
    ],
)
def test_what_does_not_fit_is_said(changes: dict[str, Any], said: str) -> None:
    warnings = Forecast(**{"hardware": H100, "devices": 8, **changes}).checked(CORE).warnings
    assert bool(warnings) == bool(said)
    for part in said.split(" .* "):
        assert part in "".join(warnings)


def test_a_stage_without_a_device_has_the_memory_of_the_node_that_is_named() -> None:
    fits, too_much = (Forecast(host_memory=size).checked(CORE).warnings for size in (100e9, 200e9))
    assert fits == ()
    assert too_much == ("needs 200 GB of a node's own memory and a node of cpu-core has 118 GB to give",)


def test_the_cores_of_a_process_hold_it_together() -> None:
    memory = {"weights": 7e9, "peak": 7e9}
    assert Forecast(hardware=CORE, devices=2, per_process=2, memory=memory).checked(CORE).warnings == ()
    assert Forecast(hardware=CORE, devices=2, memory=memory).checked(CORE).warnings == (
        "needs 7 GB on a device and cpu-core has 3.68 GB to give; most of it is weights (7 GB)",
    )
    more = {"weights": 8e9, "peak": 8e9}
    assert Forecast(hardware=CORE, devices=2, per_process=2, memory=more).checked(CORE).warnings == (
        "needs 8 GB in a process and 2 × cpu-core have 7.36 GB to give; most of it is weights (8 GB)",
    )


def test_a_begun_stage_starts_again_and_goes_on_at_its_own_speed() -> None:
    seconds = {"start": 120, "weights": 60, "compute": 1e4, "traffic": 2e3, "judging": 40, "export": 30}
    whole = Forecast(tokens=1e6, seconds=seconds, stored=8e9, moved=8e9, objects=10).at_speed(500)
    assert whole.seconds == {"start": 120, "weights": 60, "judging": 40, "export": 30, "measured speed": 2000}
    left = whole.left(0.25, unstored=1.0)
    assert left.seconds == {"start": 120, "weights": 60, "judging": 10, "export": 30, "measured speed": 500}
    assert (left.tokens, left.stored, left.moved, left.objects) == (0.25e6, 8e9, 2e9, 10)
    assert (whole.left(0.25, unstored=0.25).stored, whole.left(0.25, unstored=0.25).objects) == (2e9, 3)


def test_a_processor_costs_no_accelerator_hours() -> None:
    forecast = Forecast(hardware=CORE, devices=2, seconds={"compute": 1800.0, "start": 1800.0})
    assert forecast.duration == 3600
    assert forecast.device_hours == 0
    assert forecast.usd({}) == pytest.approx(2 * 0.04)
    assert Forecast(seconds={"disk": 3600.0}).usd({}) == 0
    given = assumptions()
    assert utilisation_of(CORE, 0.4, given) == given.cpu_utilisation
    assert utilisation_of(H100, 0.4, given) == 0.4
    assert start_seconds(given) == start_seconds(given, CORE) == given.cpu_start_seconds
    assert (device_bandwidth(H100, 1, 0.5), device_bandwidth(H100, 2, 0.5)) == (225e9, 25e9)


def test_assumptions_can_be_changed_within_their_range() -> None:
    assert assumptions(["padding=0.1", "start_seconds=0"]).padding == 0.1
    for text, said in (
        ("padding", "must be name=value"),
        ("pading=0.1", "must be name=value"),
        ("padding=1", "--assume padding:"),
        ("padding=much", "--assume padding:"),
        ("hub_bytes_per_second=inf", "--assume hub_bytes_per_second:"),
    ):
        with pytest.raises(BadInputError, match=said):
            assumptions([text])


def test_documents_and_their_pairs() -> None:
    alike = Documents.of(10, 100, 0.5, longest=1000)
    assert (alike.rows, alike.tokens, alike.targets, alike.length) == (10, 1000, 500, 100)
    assert alike.pairs(1.0) == 10 * 100 * 101 / 2
    # Half of 50 tokens, half of 150: the mean square is 12,500.
    assert alike.pairs(1.25) == 5 * (50 * 51 + 150 * 151) / 2
    assert Documents.of(10, 100, 1.0, longest=50).rows == 20
    assert alike + alike == alike.scaled(2)


def test_a_small_vocabulary_needs_more_tokens() -> None:
    assert tokens_of_bytes(4400, 4.4, 128_256) == tokens_of_bytes(4400, 4.4, 100_000) == pytest.approx(1000)
    assert 4400 / tokens_of_bytes(4400, 4.4, 49_152) == pytest.approx(4.1, abs=0.1)
    assert 4400 / tokens_of_bytes(4400, 4.4, 1024) == pytest.approx(2.2, abs=0.1)


def test_writing_is_bound_by_memory_until_the_batch_is_large() -> None:
    reading = Reading(answers=100, answer_tokens=10) + Reading(prompt_tokens=50, answers=100, answer_tokens=30)
    assert (reading.answers, reading.answer_tokens, reading.prompt_tokens) == (200, 20, 50)
    seconds = {
        batch: writing_seconds(reading, batch=batch, weight_bytes=1e9, bandwidth=1e12, flops_a_token=1e9, flops=1e14)
        for batch in (1, 50, 200, 400)
    }
    assert seconds[1] == pytest.approx(4000 * 1e-3)
    assert seconds[50] == pytest.approx(seconds[1] / 50)
    assert seconds[400] == pytest.approx(seconds[200]) == pytest.approx(4000 * 1e9 / 1e14)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (byte_size(0), "0 B"),
        (byte_size(999), "999 B"),
        (byte_size(999_900), "1 MB"),
        (byte_size(37.2e9), "37.2 GB"),
        (byte_size(9.5e12), "9.5 TB"),
        (span(4), "4.0 s"),
        (span(3180), "53 min"),
        (span(29.6 * 3600), "29.6 h"),
        (span(1234.4 * 3600), "1,234 h"),
        (money(0), "0.00"),
        (money(0.001), "<0.01"),
        (money(1017.4), "1,017"),
        (figure(474_050.2), "474,050"),
        (figure(4.617e8), "4.617e+08"),
    ],
)
def test_numbers_in_words(said: str, expected: str) -> None:
    assert said == expected
