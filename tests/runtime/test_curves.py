"""Curves in bounded memory, as an image that a dashboard can show."""

from __future__ import annotations

import base64
import itertools
import math
import re
from xml.etree import ElementTree

import pytest

from tasks.runtime.curves import MOST_CURVES, MOST_POINTS, Curve, Curves

SVG = "{http://www.w3.org/2000/svg}"


def test_a_long_curve_is_thinned_to_means_of_equal_stretches() -> None:
    curve = Curve()
    for step in range(1, 10_001):
        curve.add(step, 3.0 * step)
        assert len(curve.drawn()) <= MOST_POINTS
    points = curve.drawn()
    assert len(points) >= MOST_POINTS // 2
    assert all(value == pytest.approx(3 * step) for step, value in points)
    distances = {later[0] - earlier[0] for earlier, later in itertools.pairwise(points[:-1])}
    assert len(distances) == 1
    assert (curve.steps, curve.last) == ((1, 10_000), 30_000)


def test_metrics_become_one_chart_each() -> None:
    curves = Curves()
    for step in range(1, 4):
        curves.add({"step": step, "loss": 10.0 / step, "forward_kl": 1.5, "note": "text", "flag": True})
    curves.add({"step": 3, "held<out": 0.25, "loss": math.nan})
    curves.add({"loss": 99.0})
    assert list(curves.curves) == ["loss", "forward_kl", "held<out"]
    page = curves.markdown()
    image = re.fullmatch(r"!\[.*\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)\n", page)
    assert image is not None
    svg = ElementTree.fromstring(base64.b64decode(image[1]))
    texts = [text.text for text in svg.iter(f"{SVG}text")]
    assert [name for name in ("loss", "forward kl", "held<out") if name in texts] == ["loss", "forward kl", "held<out"]
    assert texts[:5] == ["loss", "3.33", "10", "3.33", "step 1 to 3"]
    falling, flat, single = [
        [tuple(map(int, point.split(","))) for point in line.attrib["points"].split()]
        for line in svg.iter(f"{SVG}polyline")
    ]
    assert [x for x, _ in falling] == sorted({x for x, _ in falling})
    assert [y for _, y in falling] == sorted({y for _, y in falling}), "down the page is a smaller value"
    assert len({y for _, y in flat}) == 1
    assert len(single) == 1


def test_the_page_stays_small() -> None:
    curves = Curves()
    for step in range(1000):
        curves.add({"step": step, **{f"metric_{index}": math.sin(step * index) for index in range(2 * MOST_CURVES)}})
    assert len(curves.curves) == MOST_CURVES
    assert len(curves.markdown()) < 40_000


def test_a_stage_without_metrics_has_no_page() -> None:
    curves = Curves()
    curves.add({"step": 1})
    assert not curves.curves
