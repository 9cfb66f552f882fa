"""The card says what was removed from the instructions, and with which evaluations they were not compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tasks.artifacts.artifact import Artifact
from tasks.publish.lineage import Ancestor
from tasks.publish.steps import steps_text

METRICS: dict[str, Any] = {
    "offered": 1200,
    "rows": 1100,
    "removed_share": 100 / 1200,
    "removed": {"exact_duplicates": 60, "decontamination": 40},
    "evaluations": {"leaderboard_bbh": {"items": 6511, "rows_removed": 40, "sha256": "0" * 64}},
    "not_decontaminated": {"leaderboard_gpqa": "its terms forbid a copy here"},
}


def test_the_card_has_the_counts_and_the_reasons(make: Callable[..., Artifact]) -> None:
    def step_of(**changes: Any) -> str:
        metrics = {**METRICS, **changes}
        cleaned = make("clean", "clean", {"clean.json": b"{}"}, metrics=metrics, recipe={"tried": str(changes)})
        manifest = cleaned.manifest()
        assert manifest is not None
        return steps_text([Ancestor(cleaned.directory, manifest)], "TIES")

    assert step_of() == (
        "1. The instructions were cleaned: of 1,200 rows 1,100 are left (removed: decontamination 40, exact duplicates "
        "60); compared with the evaluations leaderboard_bbh (6,511 items); not compared with leaderboard_gpqa: its "
        "terms forbid a copy here (`clean`)."
    )
    assert "compared with no evaluation; not compared with leaderboard_gpqa" in step_of(evaluations={})
    off = step_of(removed={"length": 3}, evaluations={}, not_decontaminated={})
    assert off.endswith("(removed: length 3); they were compared with no evaluation (`clean`).")
