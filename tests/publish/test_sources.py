"""Sources that no shipped profile has."""

from __future__ import annotations

from typing import Any

from tasks.publish.lineage import Made
from tasks.publish.sources import Licenses, licensed_sources


def test_imported_logits_have_a_teacher_and_texts() -> None:
    recipe: dict[str, Any] = {"source": {"paths": ["a.parquet", "b.parquet"]}, "teacher": None}
    logits = Made("l", "import_logits", "logits-qwen", recipe, {})
    lineage = {"l": logits, "d": Made("d", "distill", "distill-qwen", {}, {"logits": "l"})}
    stated = Licenses(models={"teacher of logits-qwen": "qwen"}, data={"a.parquet, b.parquet": "own"})
    found = {each.name: each.license for each in licensed_sources(lineage, "d", stated)}
    assert found == {"teacher of logits-qwen": "qwen", "a.parquet, b.parquet": "own"}
    lineage["l"] = Made("l", "import_logits", "x", {**recipe, "teacher": {"repo": "meta-llama/Llama-3.1-405B"}}, {})
    named = licensed_sources(lineage, "d", Licenses(data={"a.parquet, b.parquet": "own"}))
    assert [each.license for each in named if each.name == "meta-llama/Llama-3.1-405B"] == ["llama3.1"]
