from __future__ import annotations

import math
from pathlib import Path

import pytest

from tasks.artifacts.fingerprint import artifact_key, canonical_json, content_digest
from tasks.artifacts.frozen import Frozen


def test_equal_meanings_have_equal_bytes() -> None:
    assert canonical_json({"b": 1, "a": (1, 2)}) == canonical_json({"a": [1, 2], "b": 1.0})
    assert canonical_json({"a": 2.0}) == b'{"a":2}'


def test_fields_with_defaults_are_part_of_the_identity() -> None:
    class Recipe(Frozen):
        steps: int
        seed: int = 0

    assert canonical_json(Recipe(steps=1)) == b'{"seed":0,"steps":1}'


@pytest.mark.parametrize("value", [{1: "a"}, {"a": {1, 2}}, {"a": Path("x")}, [object()], {"a": b"x"}])
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"\$"):
        canonical_json(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_a_number_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"\$\.loss"):
        canonical_json({"loss": value})


def test_every_part_of_the_identity_changes_the_key() -> None:
    base = artifact_key("dump", 1, {"k": 64}, {"teacher": "aa"})
    assert base == artifact_key("dump", 1, {"k": 64}, {"teacher": "aa"})
    others = [
        artifact_key("dumb", 1, {"k": 64}, {"teacher": "aa"}),
        artifact_key("dump", 2, {"k": 64}, {"teacher": "aa"}),
        artifact_key("dump", 1, {"k": 65}, {"teacher": "aa"}),
        artifact_key("dump", 1, {"k": 64}, {"teacher": "ab"}),
        artifact_key("dump", 1, {"k": 64}, {"student": "aa"}),
    ]
    assert len({base, *others}) == 6


def test_digest_ignores_order_and_sees_names() -> None:
    assert content_digest([("a", "1"), ("b", "2")]) == content_digest([("b", "2"), ("a", "1")])
    assert content_digest([("a", "1"), ("b", "2")]) != content_digest([("a", "2"), ("b", "1")])
