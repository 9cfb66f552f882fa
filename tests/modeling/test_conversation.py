from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from tasks.modeling.conversation import Turn, read_turn


@pytest.mark.parametrize(
    ("value", "role"),
    [
        ({"from": "human", "value": "a"}, "user"),
        ({"from": "gpt", "value": "a"}, "assistant"),
        ({"from": "system", "value": "a"}, "system"),
        ({"role": "user", "content": "a"}, "user"),
        ({"role": "tool", "content": "a"}, "tool"),
        ({"role": "narrator", "content": "a"}, None),
        ({"from": None, "value": None, "role": "assistant", "content": "a"}, "assistant"),
    ],
)
def test_both_layouts_have_the_template_s_roles(value: Any, role: str | None) -> None:
    turn = read_turn(value)
    assert turn is not None
    assert (turn.role, turn.content) == (role, "a")


@pytest.mark.parametrize("value", [None, "a", [], {}, {"from": "human"}, {"from": "human", "content": "a"}])
def test_what_is_no_turn(value: Any) -> None:
    assert read_turn(value) is None


def test_a_turn_keeps_the_speaker_as_written_and_needs_no_torch() -> None:
    assert read_turn({"from": "gpt", "value": " a "}) == Turn("gpt", " a ")
    program = "import sys, tasks.modeling.conversation; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
