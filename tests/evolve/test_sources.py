"""Sources that need no endpoint: generated exercises and ready data sets."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import file_sha256
from tasks.evolve.row_sources import PackageRows
from tasks.evolve.sources import conversation
from tasks.evolve.stage import EvolveRecipe
from tasks.exercises import split_of
from tests.committed import metrics_of, read
from tests.evolve.reading import rows_of

RunStage = Callable[..., Artifact]
EXERCISES = {
    "source": {"kind": "exercises", "kinds": ["add", "reverse"], "difficulties": [1, 3], "count": 20, "seed": 7}
}
RIVERS = [{"from": "human", "value": "Name a river."}, {"from": "gpt", "value": "The Danube."}]


def dataset_recipe(path: Path, **changes: Any) -> dict[str, Any]:
    rows = {"origin": "file", "path": str(path), "content_sha256": file_sha256(path), **changes.pop("rows", {})}
    return {"source": {"kind": "dataset", "rows": rows, **changes}}


def test_exercises_rise_in_difficulty_and_come_from_the_training_split(run_stage: RunStage) -> None:
    artifact = run_stage("evolve", EXERCISES, {})
    rows, metrics = rows_of(artifact), metrics_of(artifact)
    assert len(rows) == len({row["id"] for row in rows}) == metrics["rows"] == 80
    assert metrics["generated"] is True
    levels = [row["lineage"]["difficulty"] for row in rows]
    assert levels == sorted(levels)
    assert set(levels) == {1, 3}
    for row in rows:
        question, answer = row["messages"]
        assert (question["role"], answer["role"]) == ("user", "assistant")
        assert split_of(question["content"]) == row["lineage"]["split"] == "train"
        if row["lineage"]["kind"] == "add":
            added, numbers = question["content"].removeprefix("Add ").split(" to each: ")
            assert answer["content"] == " ".join(str(int(number) + int(added)) for number in numbers.split())
    assert json.loads(read(artifact, "evolve.json"))["generated"] is True


def test_exercises_are_the_same_bytes_each_time(run_stage: RunStage) -> None:
    changed = {"source": {**EXERCISES["source"], "kinds": ["add", "reverse"], "seed": 8}}
    first, other = run_stage("evolve", EXERCISES, {}), run_stage("evolve", changed, {})
    text, name = read(first, "instructions.jsonl"), "instructions.jsonl"
    first.store.delete(first.path("manifest.json"))
    for entry in list(first.store.list(first.path("shards"))):
        first.store.delete(entry.path)
    assert read(run_stage("evolve", EXERCISES, {}), name) == text
    assert read(other, name) != text


def test_exercises_load_no_library_of_the_other_sources() -> None:
    code = (
        "import sys, tasks.evolve.stage, tasks.evolve.worker, tasks.exercises; "
        "print([name for name in ('openai', 'datasets', 'torch', 'prefect', 'httpx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_data_set_in_sharegpt_form_is_taken_as_it_is(run_stage: RunStage, tmp_path: Path) -> None:
    conversations: list[Any] = [
        RIVERS,
        [{"from": "system", "value": "Be brief."}, *RIVERS, *RIVERS],
        RIVERS,
        RIVERS[:1],
        [*RIVERS, RIVERS[0]],
        [{"from": "human", "value": "Name a sea."}, {"from": "gpt", "value": "  "}],
        [{"from": "human", "value": "Name a lake."}, {"from": "gpt", "value": "502 Bad Gateway"}],
        [{"from": "tool", "value": "x"}, *RIVERS],
        [],
    ]
    path = tmp_path / "rows.json"
    path.write_text("\n".join(json.dumps({"conversations": value}) for value in conversations))
    artifact = run_stage("evolve", dataset_recipe(path), {})
    rows, metrics = rows_of(artifact), metrics_of(artifact)
    assert [[message["role"] for message in row["messages"]] for row in rows] == [
        ["user", "assistant"],
        ["system", "user", "assistant", "user", "assistant"],
    ]
    assert rows[0]["messages"][1] == {"role": "assistant", "content": "The Danube."}
    assert rows[0]["lineage"] == {"source": "dataset", "row": 0, "content_sha256": file_sha256(path)}
    assert [metrics[name] for name in ("seeds", "rows", "duplicates", "errored", "unparsed")] == [9, 2, 1, 1, 5]
    assert metrics["rejected_fraction"] == pytest.approx(7 / 9)
    assert metrics["generated"] is False
    assert b"Bad Gateway" not in read(artifact, "instructions.jsonl")


def test_messages_with_roles_in_a_json_array(run_stage: RunStage, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    messages = [{"role": "user", "content": "Name a river."}, {"role": "assistant", "content": "The Danube."}]
    path.write_text(json.dumps([{"messages": messages}, {"messages": messages[:1]}]))
    artifact = run_stage("evolve", dataset_recipe(path, rows={"messages_field": "messages"}), {})
    assert [row["messages"] for row in rows_of(artifact)] == [messages]


def test_a_sample_of_a_data_set_keeps_its_order_and_depends_on_the_seed(run_stage: RunStage, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(
        "\n".join(
            json.dumps({"conversations": [{"from": "human", "value": f"Say {n}."}, {"from": "gpt", "value": str(n)}]})
            for n in range(50)
        )
    )
    drawn = [
        [row["lineage"]["row"] for row in rows_of(run_stage("evolve", dataset_recipe(path, max_rows=9, seed=seed), {}))]
        for seed in (0, 1)
    ]
    assert all(len(rows) == 9 and rows == sorted(rows) for rows in drawn)
    assert drawn[0] != drawn[1]


def test_a_file_that_changed_after_planning_is_refused(run_stage: RunStage, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"conversations": RIVERS}]))
    recipe = dataset_recipe(path)
    path.write_text(json.dumps([{"conversations": RIVERS * 2}]))
    with pytest.raises(BadInputError, match="not the file that this run was planned with"):
        run_stage("evolve", recipe, {})


def test_a_wrong_field_and_a_broken_file_are_said_in_one_sentence(run_stage: RunStage, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"chat": RIVERS}]))
    with pytest.raises(BadInputError, match="no field 'conversations', only chat"):
        run_stage("evolve", dataset_recipe(path), {})
    path.write_text('{"conversations": [')
    with pytest.raises(BadInputError, match="cannot be read"):
        run_stage("evolve", dataset_recipe(path), {})


def test_instructions_come_with_a_python_package(run_stage: RunStage) -> None:
    pytest.importorskip("zaragoza_construction_faq", reason="the extra smollm2 is not installed")
    rows = {"origin": "package", "package": "zaragoza_construction_faq", "file": "data/faq-en-sharegpt.jsonl"}
    recipe = EvolveRecipe.model_validate({"source": {"kind": "dataset", "rows": rows}}).with_identity()
    artifact = run_stage("evolve", recipe.model_dump(mode="json"), {})
    found, metrics = rows_of(artifact), metrics_of(artifact)
    assert metrics["seeds"] == 503
    assert len(found) + metrics["duplicates"] == 503
    assert found[0]["messages"][0]["content"] == "What is a bygglov (building permit)?"
    assert found[0]["lineage"]["package"] == "zaragoza_construction_faq"


def test_a_package_or_file_that_is_not_there_is_named() -> None:
    with pytest.raises(BadInputError, match="the Python package no_such_package is not installed"):
        PackageRows(origin="package", package="no_such_package", file="*").with_identity()
    with pytest.raises(BadInputError, match=r"set `file` in evolve\.recipe\.source to one file"):
        PackageRows(origin="package", package="pytest", file="*.none").with_identity()


@pytest.mark.parametrize("value", [None, "text", [None], [{"from": "human"}], [RIVERS[1], RIVERS[0]], [RIVERS[0]] * 2])
def test_what_is_no_conversation(value: Any) -> None:
    assert conversation(value) is None


def test_seeds_come_from_first_user_turns_or_plain_text(
    run_stage: RunStage, endpoint: Any, autoevol_recipe: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    recipe = autoevol_recipe(method_rounds=0, evolution_rounds=1)
    path = tmp_path / "seeds.json"
    for field, value in {"conversations": [{"from": "system", "value": "x"}, *RIVERS], "text": "Name a sea."}.items():
        path.write_text(json.dumps([{field: value}]))
        recipe["source"]["seeds"] = {
            "origin": "file",
            "path": str(path),
            "content_sha256": file_sha256(path),
            "messages_field": field,
        }
        (row,) = rows_of(run_stage("evolve", recipe, {}, endpoint.settings()))
        seed = "Name a sea." if field == "text" else "Name a river."
        assert row["messages"][0]["content"].startswith(seed)
        origin = {"path": str(path), "content_sha256": file_sha256(path), "row": 0}
        assert row["lineage"]["seed_origin"] == origin
    path.write_text(json.dumps([{"text": ""}]))
    recipe["source"]["seeds"]["content_sha256"] = file_sha256(path)
    with pytest.raises(BadInputError, match="seed row 0 has no instruction"):
        run_stage("evolve", recipe, {}, endpoint.settings())
