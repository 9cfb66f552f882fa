"""Harness tasks from a local mirror as items, rows that hold their text, and sets that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts.errors import BadInputError
from tasks.benchmarks.declare import HarnessTasks
from tasks.benchmarks.evaluation_sets import HarnessSet
from tasks.benchmarks.evaluation_texts import items_of

Clean = Callable[..., dict[str, bytes]]
Said = Callable[..., dict[str, Any]]
OF_MMLU = {"evaluations": [{"type": "lm_eval", "name": "mmlu_anatomy"}]}


def test_a_harness_task_is_read_from_a_mirror_as_the_harness_renders_it(mirror: Path) -> None:
    first, second = items_of(HarnessSet(name="mmlu_anatomy"), str(mirror))
    assert first.name == "mmlu_anatomy/0"
    rendered, question = first.prompts
    assert rendered.startswith(question)
    assert rendered.endswith("D. The masseter\nAnswer:")
    assert first.answers == ("A",)
    assert second.prompts[1] == "Which bone of the middle ear is smallest"


def test_an_evaluation_reads_its_tasks_from_the_same_mirror(mirror: Path) -> None:
    import datasets

    from tasks.benchmarks.loading import load_tasks

    before = datasets.load_dataset
    entry = HarnessTasks(type="lm_eval", name="mmlu_anatomy", metric="acc", num_fewshot=1)
    (loaded,) = load_tasks([entry], 8, str(mirror))
    task = loaded.tasks["mmlu_anatomy"]
    assert [document["question"] for document in task.eval_docs] == [
        item.prompts[1] for item in items_of(HarnessSet(name="mmlu_anatomy"), str(mirror))
    ]
    assert task.get_config("num_fewshot") == 1
    # Outside, the hub is what it was.
    assert datasets.load_dataset is before


def test_a_contaminated_row_is_removed_through_a_mirror(clean: Clean, said: Said, mirror: Path) -> None:
    question = next(iter(items_of(HarnessSet(name="mmlu_anatomy"), str(mirror)))).prompts[1]
    lines = [
        said("clean", "Which muscle raises the pitch of the voice?", "The cricothyroid."),
        said("leaked", f"Quiz!\r\n\r\n{question.upper()}? Think first.", "The cricothyroid muscle."),
        said("in the answer", "Make a quiz question.", f"Here you go: {question}?"),
        said("short", "Tell me: which bone of the middle ear is smallest?", "The stapes."),
        said("other", "Which bone of the middle ear is the largest one?", "The malleus."),
    ]
    files = clean(lines, OF_MMLU, {"mirror": str(mirror)})
    kept = [json.loads(line)["id"] for line in files["instructions.jsonl"].splitlines()]
    assert kept == ["clean", "other"]
    report = json.loads(files["clean.json"])
    about = report["evaluations"]["mmlu_anatomy"]
    assert (about["items"], about["rows_removed"]) == (2, 3)
    assert len(about["sha256"]) == 64
    examples = {example["id"]: example for step in report["steps"] for example in step["examples"]}
    assert examples["leaked"]["item"] == "mmlu_anatomy/0"
    assert examples["short"]["item"] == "mmlu_anatomy/1"


def test_a_set_that_cannot_be_read_is_refused_or_named_with_a_reason(
    clean: Clean, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets.config
    import huggingface_hub.constants

    for module, name in ((huggingface_hub.constants, "HF_HUB_OFFLINE"), (datasets.config, "HF_HUB_OFFLINE")):
        monkeypatch.setattr(module, name, True)
    lines = [said("a", "Name a river.", "The Danube.")]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with pytest.raises(
        BadInputError,
        match=r"the data of the evaluation set mmlu_anatomy cannot be read .*mirror"
        r".* in fine_tuning\.clean\.recipe\.not_decontaminated why",
    ):
        clean(lines, OF_MMLU, {"mirror": str(elsewhere)})
    with pytest.raises(BadInputError, match=r"folder of mirrored data sets .* does not exist"):
        clean(lines, OF_MMLU, {"mirror": str(tmp_path / "nowhere")})
    with pytest.raises(BadInputError, match="the harness has no task or group 'mmlu_alchemy'"):
        clean(lines, {"evaluations": [{"type": "lm_eval", "name": "mmlu_alchemy"}]})
    reason = "the hub is not reached from here"
    files = clean(lines, {**OF_MMLU, "not_decontaminated": {"mmlu_anatomy": reason}})
    assert json.loads(files["clean.json"])["not_decontaminated"] == {"mmlu_anatomy": reason}
    assert json.loads(files["clean.json"])["evaluations"] == {}
    assert json.loads(files["metrics"])["not_decontaminated"] == {"mmlu_anatomy": reason}
