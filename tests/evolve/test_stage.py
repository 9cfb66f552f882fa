"""The configuration: what is part of the key, what is refused, how gates judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import file_sha256
from tasks.evolve.endpoint import Endpoint
from tasks.evolve.stage import STAGE, EvolveConfig, EvolveGates, EvolveRecipe
from tasks.runtime.declare import Step

Recipe = Callable[..., dict[str, Any]]


def key_of(**blocks: Any) -> str:
    return Step(STAGE, "evolve", EvolveConfig.model_validate(blocks)).key


def test_the_endpoint_is_no_part_of_the_key_and_the_model_is(autoevol_recipe: Recipe) -> None:
    recipe = autoevol_recipe()
    key = key_of(recipe=recipe)
    assert key == key_of(recipe=recipe, runtime={"endpoint": {"base_url": "http://a/v1"}}, gates={"min_rows": 9})
    recipe["source"]["answerer"] = {**recipe["source"]["answerer"], "model": "another"}
    assert key != key_of(recipe=recipe)


@pytest.mark.parametrize(
    "url", ["ftp://a/v1", "a/v1", "https://user:secret@a/v1", "https://a/v1?key=secret", "https://a/v1#secret"]
)
def test_a_url_holds_no_secret(url: str) -> None:
    with pytest.raises(ValidationError, match="base_url"):
        Endpoint(base_url=url)


def test_there_is_no_place_for_a_key(autoevol_recipe: Recipe) -> None:
    with pytest.raises(ValidationError, match="api_key"):
        key_of(recipe=autoevol_recipe(), runtime={"endpoint": {"base_url": "http://a/v1", "api_key": "secret"}})


def test_a_branch_is_no_revision() -> None:
    rows = {"origin": "hub", "dataset": "owner/name", "revision": "main"}
    with pytest.raises(ValidationError, match="revision"):
        key_of(recipe={"source": {"kind": "dataset", "rows": rows}})


def test_a_repeated_kind_is_refused() -> None:
    source = {"kind": "exercises", "kinds": ["add", "add"], "difficulties": [1], "count": 1}
    with pytest.raises(ValidationError, match="name a value once"):
        key_of(recipe={"source": source})


def test_a_cost_budget_needs_the_price_of_every_model(autoevol_recipe: Recipe) -> None:
    endpoint = {"base_url": "http://a/v1", "cost_budget": 5, "prices": {"writer": {"prompt": 1, "completion": 2}}}
    with pytest.raises(ValidationError, match=r"without the prices of critic; put them into runtime\.endpoint\.prices"):
        key_of(recipe=autoevol_recipe(), runtime={"endpoint": endpoint})
    endpoint["prices"]["critic"] = {"prompt": 1, "completion": 2}  # type: ignore[index]
    assert key_of(recipe=autoevol_recipe(), runtime={"endpoint": endpoint}) == key_of(recipe=autoevol_recipe())


def test_a_method_of_a_file_is_identified_by_its_content(tmp_path: Path, autoevol_recipe: Recipe) -> None:
    path = tmp_path / "method.txt"
    keys = []
    for text in ("Step 1. Be harder.", "Step 1. Be rarer."):
        path.write_text(text)
        recipe = EvolveRecipe.model_validate(autoevol_recipe(method={"path": str(path)})).with_identity()
        keys.append(key_of(recipe=recipe.model_dump(mode="json")))
    assert len(set(keys)) == 2


@pytest.mark.parametrize("role", ["rows", "seeds"])
def test_a_file_is_identified_by_its_content(tmp_path: Path, autoevol_recipe: Recipe, role: str) -> None:
    path = tmp_path / "rows.json"
    block = {"origin": "file", "path": str(path)}
    source = {"kind": "dataset", "rows": block} if role == "rows" else autoevol_recipe(seeds=block)["source"]
    recipe = EvolveRecipe.model_validate({"source": source})
    with pytest.raises(BadInputError, match="does not exist"):
        recipe.with_identity()
    path.write_text("[]")
    known = recipe.with_identity()
    assert getattr(known.source, role).content_sha256 == file_sha256(path)
    assert known.with_identity() == known
    path.write_text("[1]")
    assert recipe.with_identity() != known
    with pytest.raises(BadInputError, match="remove content_sha256 to take the new content"):
        known.with_identity()


def test_gates_judge_rows_and_rejections() -> None:
    gates = EvolveGates(min_rows=10, max_rejected_fraction=0.2)
    verdicts = {v.gate: v.passed for v in STAGE.judge({"rows": 9, "rejected_fraction": 0.2}, gates)}
    assert verdicts == {"min_rows": False, "max_rejected_fraction": True}
    assert not any(verdict.passed for verdict in STAGE.judge({}, gates))
