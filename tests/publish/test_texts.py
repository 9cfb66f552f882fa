"""A licence's text goes along where a source came with it, and is told to be missing where none did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.publish.sources import LicensedSource
from tasks.publish.stage import PublishRecipe
from tasks.publish.texts import TextFile
from tests.committed import objects_of
from tests.publish.conftest import Make, hub_model, model_files
from tests.publish.test_publish_worker import RECIPE, publish

RunStage = Callable[..., Artifact]
LLAMA, POLICY, APACHE = b"LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n", b"Do not.\n", b"Apache License, Version 2.0\n"


@pytest.fixture
def merged(make: Make, tmp_path: Path) -> Callable[..., Artifact]:
    """merged({repository: {name: data}}) is a fusion of copies of these repositories with these files beside."""

    def build(repositories: Mapping[str, Mapping[str, bytes]]) -> Artifact:
        branches = {
            f"branch.{index}": make(
                "models", f"model-{index}", {**model_files(40 + index, tmp_path), **files}, recipe=hub_model(repository)
            )
            for index, (repository, files) in enumerate(repositories.items())
        }
        # The bytes are those that the fixture's evaluation measured.
        return make("fuse", "merged", model_files(31, tmp_path), branches, recipe={"merge_method": "ties"})

    return build


def test_texts_go_along_under_names_of_their_own(
    run_stage: RunStage, pipeline: dict[str, Artifact], merged: Callable[..., Artifact]
) -> None:
    files = {"LICENSE": LLAMA, "USE_POLICY.md": POLICY}
    model = merged(
        {
            "meta-llama/Llama-3.1-8B": files,
            "meta-llama/Llama-3.1-70B": files,
            "Qwen/Qwen2.5-7B": {"LICENSE": APACHE},
            "Qwen/Qwen2.5-14B": {"LICENSE": APACHE + b"Copyright Alibaba Cloud\n"},
        }
    )
    published = objects_of(publish(run_stage, pipeline, model))
    texts = {name: data for name, data in published.items() if name.startswith(("LICENSE", "USE"))}
    assert texts == {
        "LICENSE-llama3.1": LLAMA,
        "USE_POLICY-llama3.1.md": POLICY,
        "LICENSE-apache-2.0": APACHE,
        "LICENSE-apache-2.0-2": APACHE + b"Copyright Alibaba Cloud\n",
    }
    notice = published["NOTICE"].decode()
    assert "LICENSE-llama3.1: of llama3.1, as meta-llama/Llama-3.1-8B has it.\n" in notice
    assert "is not among these files" not in notice
    assert "LICENSE-apache-2.0-2: of apache-2.0, as Qwen/Qwen2.5-14B has it." in published["README.md"].decode()


def test_a_text_that_no_source_has_is_told_to_be_missing(run_stage: RunStage, pipeline: dict[str, Artifact]) -> None:
    published = objects_of(publish(run_stage, pipeline))
    assert not [name for name in published if name.startswith("LICENSE")]
    notice = published["NOTICE"].decode()
    for said in (
        "The text of the licence llama3.1 (meta-llama/Llama-3.1-405B-Instruct) is not among these files. Whoever "
        "passes them on must add it: https://www.llama.com/llama3_1/license/\n",
        "The text of the licence qwen (Qwen/Qwen2.5-72B-Instruct) is not among these files.",
        "The text of the licence apache-2.0 (Qwen/Qwen2.5-14B-Instruct) is not among these files.",
    ):
        assert said in notice
    assert "goes with the model" not in notice


def test_nothing_under_llama_s_licence_goes_to_the_hub_without_its_text(
    run_stage: RunStage,
    pipeline: dict[str, Artifact],
    merged: Callable[..., Artifact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pushed: list[dict[str, bytes]] = []

    def push(directory: Path, *_: object, **__: object) -> None:
        pushed.append({file.name: file.read_bytes() for file in directory.iterdir()})

    monkeypatch.setattr("tasks.publish.worker.push", push)
    model = merged({"meta-llama/Llama-3.1-8B": {"USE_POLICY.md": POLICY}})
    said = r"Llama-3\.1-8B is under llama3\.1, whose text must go to the hub .*license_texts: \{llama3\.1: "
    with pytest.raises(BadInputError, match=said):
        publish(run_stage, pipeline, model, target="hub")
    assert pushed == []

    file = tmp_path / "llama.txt"
    file.write_bytes(LLAMA)
    text = TextFile(path=str(file)).with_identity().model_dump(mode="json")
    publish(run_stage, pipeline, model, target="hub", license_texts={"llama3.1": text})
    (files,) = pushed
    assert files["LICENSE-llama3.1.txt"] == LLAMA
    assert b"LICENSE-llama3.1.txt: of llama3.1, as the publisher has it." in files["NOTICE"]
    assert not [name for name, data in files.items() if str(tmp_path).encode() in data]

    file.write_bytes(b"another text")
    with pytest.raises(BadInputError, match=r"license_texts says"):
        publish(run_stage, pipeline, model, target="hub", license_texts={"llama3.1": text}, title="Llama 2nd")


def test_it_is_said_before_anything_runs() -> None:
    def check(source: LicensedSource, **changes: Any) -> dict[str, list[str]]:
        recipe = PublishRecipe.model_validate({**RECIPE, **changes})
        return recipe.check_texts([source], {source.license} if source.has_files else set())

    repository = LicensedSource("meta-llama/Llama-3.1-8B", "llama3.1", has_files=True)
    served = LicensedSource("meta-llama/Llama-3.1-405B", "llama3.1", parts=frozenset({"teacher"}))
    assert check(repository, target="hub") == {}, "its repository has the text until it has been read"
    assert check(served) == {"llama3.1": ["meta-llama/Llama-3.1-405B"]}
    with pytest.raises(BadInputError, match="whose text must go to the hub"):
        check(served, target="hub")
    assert check(served, target="hub", license_texts={"llama3.1": {"path": "LICENSE"}}) == {}
    # Nothing of it is in the model, and its terms bind no user.
    assert check(LicensedSource("a/teacher", "apache-2.0", parts=frozenset({"teacher"})), target="hub") == {}
    with pytest.raises(ValidationError):
        check(served, license_texts={"llama3.1": "LICENSE"})
