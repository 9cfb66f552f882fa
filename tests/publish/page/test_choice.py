"""The page's section on the choice of the model that goes on."""

from __future__ import annotations

import json
from collections.abc import Callable

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.store import Store
from tasks.publish.page.blocks import Grid, Note
from tasks.publish.page.material import StageRecord
from tasks.publish.page.sections.choice import choice_sections
from tests.publish.page.conftest import choice_record


def test_candidates_differences_and_the_reason_are_shown(
    make: Callable[..., Artifact], record_of: Callable[..., StageRecord], store: Store
) -> None:
    record = record_of(make("choose", "choose", {"choice.json": json.dumps(choice_record()).encode()}))
    [section] = choice_sections([record], store)
    note, candidates, differences = section.blocks
    assert isinstance(note, Note)
    assert "tuned goes on: it is better" in note.text
    assert "the better one" in note.text
    assert isinstance(candidates, Grid)
    assert candidates.table.rows == (
        ("fused", "2.5000 ± 0.0100", "2.5000 ± 0.0100", "–", "0.500 ± 0.010", "7 of 8", "is worse than tuned"),
        ("tuned", "2.0000 ± 0.0100", "2.0000 ± 0.0100", "–", "0.500 ± 0.010", "7 of 8", "chosen"),
        ("odd", "–", "–", "–", "–", "–", "it gives logits that are not finite"),
    )
    assert isinstance(differences, Grid)
    assert differences.table.rows == (("tuned", "-0.5000 ± 0.0200", "-0.5000 ± 0.0200", "–", "–"),)
