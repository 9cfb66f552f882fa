"""Harness tasks from a local mirror: the same documents at each launch, and only those that the recipe means."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.artifacts.errors import BadInputError
from tasks.benchmarks.declare import HarnessTasks, PinnedHarnessTasks
from tasks.benchmarks.hub import confine_hub
from tests.benchmarks.leaderboard_mirror import GROUPS, write_gpqa, write_leaderboard, write_punkt

Launch = Callable[[], None]
CHOICES = ("choice1", "choice2", "choice3", "choice4", "answer")


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    return write_gpqa(tmp_path / "mirror", items=6)


def entry(name: str = "leaderboard_gpqa", **fields: Any) -> HarnessTasks:
    metric = fields.pop("metric", GROUPS.get(name, "acc_norm"))
    kind = PinnedHarnessTasks if "revision" in fields else HarnessTasks
    return kind.model_validate({"type": "lm_eval", "name": name, "metric": metric, **fields})


def load(mirror: Path, *entries: HarnessTasks) -> Any:
    from tasks.benchmarks.loading import load_tasks

    return load_tasks(entries, 8, str(mirror))


def test_shuffled_choices_are_in_one_order_in_every_launch(mirror: Path, launch: Launch) -> None:
    seen = []
    for seed in (1, 2):
        launch()
        random.seed(seed)
        np.random.seed(seed)
        before = random.getstate(), np.random.get_state()[1].tolist()
        (loaded,) = load(mirror, entry())
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before
        orders = {
            name: [[row[key] for key in CHOICES] for row in task.eval_docs] for name, task in loaded.tasks.items()
        }
        # What is asked and what is judged are two readings of a task's documents.
        random.seed(seed)
        again = {name: [[row[key] for key in CHOICES] for row in task.eval_docs] for name, task in loaded.tasks.items()}
        assert again == orders
        seen.append((orders, loaded.data_sha256))
    assert seen[0] == seen[1]
    answers = [row[-1] for rows in seen[0][0].values() for row in rows]
    assert len(answers) == 18
    assert len(set(answers)) > 1


_LOADING = """
import json, sys
from pathlib import Path
from tasks.benchmarks.hub import confine_hub
confine_hub(Path(sys.argv[1]), offline=True, mirror=sys.argv[2])
from tasks.benchmarks.checks import documents_sha256
from tasks.benchmarks.loading import harness_tasks
print(json.dumps({name: documents_sha256(task) for name, task in harness_tasks(sys.argv[3], sys.argv[2]).items()}))
"""


def test_processes_ask_the_same_whatever_others_have_prepared(tmp_path: Path) -> None:
    mirror = write_gpqa(tmp_path / "mirror", items=200)

    def load_in(scratch: str, name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _LOADING, str(tmp_path / scratch), str(mirror), name]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    def hashes(process: subprocess.Popen[str]) -> dict[str, str]:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        found: dict[str, str] = json.loads(said.splitlines()[-1])
        return found

    alone = hashes(load_in("alone", "leaderboard_gpqa"))
    assert len(alone) == 3
    # An earlier launch was killed when it had one of the three.
    assert hashes(load_in("shared", "leaderboard_gpqa_main"))
    ranks = [load_in("shared", "leaderboard_gpqa") for _ in range(2)]
    assert [hashes(rank) for rank in ranks] == [alone, alone]


def test_cleaning_reads_the_questions_in_the_order_in_which_they_are_asked(mirror: Path, launch: Launch) -> None:
    from tasks.benchmarks.evaluation_sets import HarnessSet
    from tasks.benchmarks.evaluation_texts import items_of

    (loaded,) = load(mirror, entry())
    launch()
    read = {item.name: item.prompts[0] for item in items_of(HarnessSet(name="leaderboard_gpqa"), str(mirror))}
    task = loaded.tasks["leaderboard_gpqa_main"]
    asked = {f"leaderboard_gpqa_main/{number}": task.doc_to_text(row) for number, row in enumerate(task.eval_docs)}
    assert {name: read[name] for name in asked} == asked


def test_a_recipe_may_state_version_and_data(mirror: Path, launch: Launch) -> None:
    from tasks.benchmarks.loading import data_digest

    (loaded,) = load(mirror, entry())
    found = data_digest(loaded.data_sha256)
    load(mirror, entry(data_sha256=found, version=1.0))
    with pytest.raises(BadInputError, match=r"gpqa_\w+ has version 1\.0 in the installed harness, and .* states 2\.0"):
        load(mirror, entry(version=2.0))
    write_gpqa(mirror, items=7)
    launch()
    with pytest.raises(BadInputError, match=rf"data of leaderboard_gpqa have the sha256 .*, and .* states {found}"):
        load(mirror, entry(data_sha256=found))


def test_a_task_is_not_counted_twice(mirror: Path, launch: Launch) -> None:
    both = "the task leaderboard_gpqa_main is both in leaderboard_gpqa and in leaderboard_gpqa_main of"
    with pytest.raises(BadInputError, match=both):
        load(mirror, entry(), entry("leaderboard_gpqa_main"))


def test_a_standard_error_can_be_made(mirror: Path, launch: Launch) -> None:
    (loaded,) = load(mirror, entry(cluster="Record ID", limit=2))
    assert loaded.cluster == "Record ID"
    with pytest.raises(
        BadInputError, match=r"have no field 'Record' to cluster by; choose one of: .*Record ID, answer"
    ):
        load(mirror, entry(cluster="Record"))
    write_gpqa(mirror, items=1)
    launch()
    with pytest.raises(
        BadInputError, match=r"task leaderboard_gpqa_\w+ has 1 documents, and a standard error needs two"
    ):
        load(mirror, entry())


def test_what_ifeval_needs_is_asked_for_before_anything_is_generated(
    tmp_path: Path, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nltk

    # A machine that reaches nobody and has nothing, whatever this one has.
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(nltk, "download", lambda *_args, **_kwargs: False)
    mirror = write_leaderboard(tmp_path / "mirror")
    own = mirror / "nltk_data"
    own.rename(tmp_path / "elsewhere")
    with pytest.raises(BadInputError, match="task leaderboard_ifeval counts sentences with NLTK's punkt_tab"):
        load(mirror, entry("leaderboard_ifeval"))
    write_punkt(own)
    (loaded,) = load(mirror, entry("leaderboard_ifeval"))
    task = loaded.tasks["leaderboard_ifeval"]
    followed = [task.process_results(task.eval_docs[0], [text]) for text in ("Dr. Who is tall.", "It is. It was.")]
    assert [each["prompt_level_strict_acc"] for each in followed] == [False, True]


def test_with_a_mirror_no_data_are_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")
    for offline, mirror, expected in (
        (False, None, [None, None, None]),
        (False, "copies", [None, "1", "1"]),
        (True, "copies", ["1", "1", "1"]),
        (True, None, ["1", "1", "1"]),
    ):
        for name in names:
            monkeypatch.delenv(name, raising=False)
        confine_hub(tmp_path, offline=offline, mirror=mirror)
        assert [os.environ.get(name) for name in names] == expected


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_revision_is_where_the_hub_is_read(mirror: Path, launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    from tasks.benchmarks.evaluation_sets import PinnedHarnessSet
    from tasks.benchmarks.evaluation_texts import items_of
    from tasks.benchmarks.loading import load_tasks

    real, asked = datasets.load_dataset, []

    def hub(path: str, *args: Any, **kwargs: Any) -> Any:
        asked.append((path, kwargs.pop("revision", None)))
        return real(str(mirror / path), *args, **kwargs)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    load_tasks([entry(revision=COMMIT)], 8)
    assert list(items_of(PinnedHarnessSet(name="leaderboard_gpqa", revision=COMMIT)))
    assert set(asked) == {("Idavidrein/gpqa", COMMIT)}
    asked.clear()
    load_tasks([entry()], 8)
    assert set(asked) == {("Idavidrein/gpqa", None)}
    asked.clear()
    # A copy is read as it is.
    load_tasks([entry(revision=COMMIT)], 8, str(mirror))
    assert {(Path(path).name, revision) for path, revision in asked} == {("gpqa", None)}


def test_a_revision_is_part_of_the_keys_of_all_that_reads_the_set() -> None:
    from flows.dag import build
    from flows.profiles import load_profile
    from tests.golden.keys import constant_content, golden

    with constant_content():
        pinned = load_profile("medius", [f"assessment.evaluate.recipe.tasks.1.revision={COMMIT}"])
        steps = {step.label: step for step in build(pinned)}
        assert {label: step.key for label, step in steps.items()}.keys() == golden()["medius"].keys()
        for label in ("evaluate", "clean", "corpus-llama", "corpus-qwen"):
            assert steps[label].key != golden()["medius"][label]
            text = steps[label].config.recipe.model_dump_json()
            assert text.count(COMMIT) == 1, "it is dumped for the worker as well"
        with pytest.raises(BadInputError, match=r"tasks\.1\.lm_eval_pinned\.revision: String should match"):
            load_profile("medius", ["assessment.evaluate.recipe.tasks.1.revision=main"])
        with pytest.raises(BadInputError, match=r"tasks\.1: Input tag 'lm-eval'"):
            load_profile("medius", ["assessment.evaluate.recipe.tasks.1.type=lm-eval"])
