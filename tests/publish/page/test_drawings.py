"""Geometry: the graph's boxes and lines, and values on their axes."""

from __future__ import annotations

import math
import random
import re
from itertools import combinations

import pytest

from tasks.publish.page.estimates import Estimate, estimates_chart
from tasks.publish.page.layers import GAP, lay_out, necessary_edges
from tasks.publish.page.lines import Curve, line_chart, thinned
from tasks.publish.page.svg import Scale, element, ticks


def random_graph(seed: int) -> tuple[list[str], dict[str, list[str]]]:
    rng = random.Random(seed)
    nodes = [f"n{i}" for i in range(rng.randint(1, 24))]
    return nodes, {
        node: rng.sample(nodes[:index], min(index, rng.choice([0, 1, 1, 2, 3]))) for index, node in enumerate(nodes)
    }


def reachable(nodes: list[str], edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for source in nodes:
        ahead = [source]
        while ahead:
            here = ahead.pop()
            for a, b in edges:
                if a == here and (source, b) not in found:
                    found.add((source, b))
                    ahead.append(b)
    return found


@pytest.mark.parametrize("seed", range(25))
def test_lines_left_out_follow_from_those_drawn(seed: int) -> None:
    nodes, inputs = random_graph(seed)
    every = {(source, node) for node in nodes for source in inputs[node]}
    drawn = set(necessary_edges(nodes, inputs))
    assert drawn <= every
    assert reachable(nodes, drawn) == reachable(nodes, every)
    for edge in drawn:
        assert edge not in reachable(nodes, drawn - {edge}), "no line could be spared"


@pytest.mark.parametrize("seed", range(25))
def test_boxes_are_below_their_inputs_and_never_overlap(seed: int) -> None:
    nodes, inputs = random_graph(seed)
    layout = lay_out(nodes, inputs)
    assert set(layout.places) == set(nodes)
    for node in nodes:
        for source in inputs[node]:
            assert layout.places[source][1] < layout.places[node][1]
    for one, other in combinations(nodes, 2):
        (x, layer), (other_x, other_layer) = layout.places[one], layout.places[other]
        assert layer != other_layer or abs(x - other_x) >= 1 - 1e-9
    for (source, target), points in layout.lines.items():
        assert points[0] == layout.places[source]
        assert points[-1] == layout.places[target]
        assert [layer for _, layer in points] == list(range(points[0][1], points[-1][1] + 1))
        for x, layer in points[1:-1]:
            near = [abs(x - at) for at, row in layout.places.values() if row == layer]
            assert min(near, default=9) >= (1 + GAP) / 2 - 1e-9, "a line passes between boxes"
    assert all(0 <= x <= layout.width - 1 + 1e-9 for x, _ in layout.places.values())


def test_a_graph_of_nothing() -> None:
    assert lay_out([], {}).num_layers == 0


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.123, 0.129), (-5, 12345), (1e-7, 3e-7), (2, 2)])
def test_ticks_are_few_and_within(low: float, high: float) -> None:
    found = ticks(low, high)
    assert (1 if low == high else 2) <= len(found) <= 8
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in found)


@pytest.mark.parametrize("seed", range(20))
def test_any_range_has_two_ticks_or_more(seed: int) -> None:
    rng = random.Random(seed)
    low = rng.uniform(-5, 5) * 10 ** rng.uniform(-5, 5)
    for number in (3, 4):
        assert 2 <= len(ticks(low, low + 10 ** rng.uniform(-4, 4), number)) <= 8


def test_steps_have_whole_ticks() -> None:
    assert ticks(0, 3, whole=True) == [0, 1, 2, 3]
    assert ticks(0.2, 0.8, whole=True) == []
    assert ticks(4, 16, whole=True) == [5, 10, 15]


def test_a_curve_goes_through_its_values() -> None:
    chart = str(line_chart([Curve("loss", "s1", [(0, 3.0), (10, 1.0), (20, 2.0), (30, math.nan)])], "a loss"))
    (told,) = re.findall(r'<path d="M([^"]+)"', chart)
    points = [tuple(map(float, pair.split())) for pair in told.split("L")]
    assert len(points) == 3, "what is not finite is left out"
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    # Down is larger in SVG: the highest value has the smallest y, and 2 lies in the middle of 1 and 3.
    assert y0 < y2 < y1
    assert y2 == pytest.approx((y0 + y1) / 2, abs=0.2)


def test_no_chart_without_a_finite_value() -> None:
    assert line_chart([Curve("loss", "s1", [(0, math.nan)])], "a loss") is None


def test_a_spike_stays_in_a_long_curve() -> None:
    points = [(float(step), 1.0) for step in range(50_000)]
    points[31_415] = (31_415.0, 99.0)
    kept = thinned(points)
    assert len(kept) < 700
    assert (31_415.0, 99.0) in kept
    assert kept == sorted(kept)
    assert (kept[0], kept[-1]) == (points[0], points[-1])


def test_error_bars_reach_one_standard_error_to_either_side() -> None:
    chart = str(estimates_chart([Estimate("a", 0.5, 0.1), Estimate("b", 0.7, 0.0)], "accuracy", "accuracy"))
    bars = [tuple(map(float, pair)) for pair in re.findall(r'x1="([\d.]+)" x2="([\d.]+)"[^>]*class="whisker', chart)]
    dots = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', chart)]
    left, right = bars[0]
    assert dots[0] == pytest.approx((left + right) / 2, abs=0.1)
    # 0.2 lies between the dots and between the bar's ends.
    assert right - left == pytest.approx(dots[1] - dots[0], abs=0.3)


def test_elements_escape_text_and_attributes() -> None:
    made = element("text", "<b>&", class_='"><script>', text_anchor="end", x=1.26, gone=None)
    assert str(made) == ('<text class="&#34;&gt;&lt;script&gt;" text-anchor="end" x="1.3">&lt;b&gt;&amp;</text>')


def test_a_scale_of_one_value_is_its_middle() -> None:
    assert Scale(2, 2, 0, 10)(2) == 5
