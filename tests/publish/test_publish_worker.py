import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError

RunStage = Callable[..., Artifact]
RECIPE: dict[str, Any] = {
    "repo_name": "somebody/Llama-Medius-tiny",
    "title": "Llama Medius tiny",
    "base_model": ["Qwen/Qwen2.5-14B-Instruct"],
    "teachers": [
        {"name": "Llama-3.1-405B-Instruct", "license": "llama3.1", "family": "llama"},
        {"name": "Qwen2.5-72B-Instruct", "license": "qwen", "family": "qwen"},
    ],
    "student": {"name": "Qwen2.5-14B-Instruct", "license": "apache-2.0"},
    "datasets": [{"name": "HuggingFaceFW/fineweb", "license": "odc-by"}],
    "generated_data": True,
    "merge_method": "TIES",
    "expected": {"exercise_add": 0.7, "leaderboard_ifeval": 0.55},
}


def publish(run_stage: RunStage, pipeline: dict[str, Artifact], **changes: Any) -> Artifact:
    runtime = changes.pop("runtime", {})
    inputs = {"model": pipeline["fuse"], "evaluation": pipeline["evaluate"]}
    return run_stage("publish", {**RECIPE, **changes}, inputs, runtime)


def objects(artifact: Artifact) -> dict[str, bytes]:
    manifest = artifact.manifest()
    assert manifest is not None
    return {entry.name: artifact.store.get(artifact.path(entry.path)) for entry in manifest.objects}


def test_the_model_is_there_byte_for_byte(run_stage: RunStage, pipeline: dict[str, Artifact]) -> None:
    files, model = objects(publish(run_stage, pipeline)), objects(pipeline["fuse"])
    del model["training_log.jsonl"]
    assert {name: files[name] for name in model} == model
    assert set(files) - set(model) == {"README.md", "NOTICE"}
    assert b"Built with Llama" in files["NOTICE"]
    assert b"Improved using Qwen" in files["NOTICE"]


def test_the_card_is_one_and_says_what_was_measured(run_stage: RunStage, pipeline: dict[str, Artifact]) -> None:
    text = objects(publish(run_stage, pipeline))["README.md"].decode()
    card = ModelCard(text)
    assert card.data.license == "llama3.1"
    assert card.data.base_model == ["Qwen/Qwen2.5-14B-Instruct"]
    assert card.data.tags == ["mergekit", "merge", "distillation"]
    assert card.data.datasets == ["HuggingFaceFW/fineweb"]
    results = json.loads(objects(pipeline["evaluate"])["results.json"])
    final = results["models"]["final"]
    measured = {each.dataset_type: each for each in card.data.eval_results}
    assert measured["exercise_add"].metric_value == final["tasks"]["exercise_add"]["value"]
    assert measured["exercise_add"].metric_args == {"stderr": final["accuracy"]["stderr"], "n": 50}
    assert measured["heldout-texts"].metric_value == final["bits_per_byte"]["value"]

    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings == [
        "Overview",
        "Distillation steps",
        "Evaluation",
        "Use cases",
        "Deployment",
        "Technical specification",
        "Lineage",
        "Licence and notices",
    ]
    assert "generated from rules" in text
    row = f"| final | {final['bits_per_byte']['value']:.4f} ± {final['bits_per_byte']['stderr']:.4f} |"
    assert row in text
    assert "| leaderboard_ifeval | – | 0.5500 | – | – |" in text
    assert "| parameters | 64 |" in text
    for label, artifact in pipeline.items():
        manifest = artifact.manifest()
        assert manifest is not None
        row = f"| {label} | {manifest.stage} | {manifest.key[:16]} | {manifest.digest[:16]} |"
        # The twin of the Llama branch was not evaluated, so nothing published depends on it.
        assert (row in text) == (label != "twin-llama")


def test_nothing_volatile_is_published(run_stage: RunStage, pipeline: dict[str, Artifact], tmp_path: Path) -> None:
    artifact = publish(run_stage, pipeline)
    first = objects(artifact)
    for entry in list(artifact.store.list(artifact.directory)):
        artifact.store.delete(entry.path)
    assert objects(publish(run_stage, pipeline)) == first
    for name in ("README.md", "NOTICE"):
        text = first[name].decode()
        for volatile in (str(tmp_path), socket.gethostname(), "node-17", "2026-", "artifacts/"):
            assert volatile not in text, f"{volatile} in {name}"


def test_an_evaluation_of_another_model_is_refused(run_stage: RunStage, pipeline: dict[str, Artifact]) -> None:
    inputs = {"model": pipeline["distill-qwen"], "evaluation": pipeline["evaluate"]}
    with pytest.raises(BadInputError, match="measured another model as 'final'"):
        run_stage("publish", RECIPE, inputs)


def test_a_directory_is_filled_whole_and_never_overwritten(
    run_stage: RunStage, pipeline: dict[str, Artifact], tmp_path: Path
) -> None:
    target = tmp_path / "published"
    runtime = {"directory": str(target)}
    files = objects(publish(run_stage, pipeline, target="directory", runtime=runtime))
    assert {file.name: file.read_bytes() for file in target.iterdir()} == files
    assert not any(file.is_symlink() for file in target.iterdir())
    (target / "README.md").write_text("mine")
    with pytest.raises(BadInputError, match="exists with other content"):
        publish(run_stage, pipeline, target="directory", title="Another", runtime=runtime)
    assert (target / "README.md").read_text() == "mine"


def test_a_permissive_model_has_no_notice(run_stage: RunStage, pipeline: dict[str, Artifact]) -> None:
    files = objects(publish(run_stage, pipeline, teachers=[], repo_name="tiny", generated_data=False))
    assert "NOTICE" not in files
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "apache-2.0"
    assert "generated from rules" not in card.text
