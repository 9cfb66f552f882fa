"""The harness tasks of a recipe, with their data."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import datasets
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import content_digest
from tasks.benchmarks.checks import (
    check_data,
    check_documents,
    check_metric,
    check_scoring,
    check_version,
    documents_sha256,
)
from tasks.benchmarks.cloze_items import CLUSTER as CLOZE_CLUSTER
from tasks.benchmarks.cloze_items import Text
from tasks.benchmarks.cloze_tasks import METRIC as CLOZE_METRIC
from tasks.benchmarks.cloze_tasks import cloze_task
from tasks.benchmarks.data_sets import faults_told
from tasks.benchmarks.declare import CLOZE, ClozeTasks, ExerciseTasks, HarnessTasks, exercise_entry, revision_of
from tasks.benchmarks.exercise_tasks import METRIC, exercise_tasks
from tasks.benchmarks.hub import data_sets_from
from tasks.benchmarks.random_state import fixed_random_state

logging.getLogger("lm_eval").setLevel(logging.ERROR)


@dataclass(frozen=True)
class LoadedTasks:
    """What is measured and told apart: a kind of exercises, or a task or group of the harness."""

    name: str
    """One of the `entries` of what the recipe lists."""
    tasks: dict[str, ConfigurableTask]
    metric: str
    filter: str = "none"
    limit: int | None = None
    cluster: str | None = None
    """The field of the documents by which they are clustered."""
    data_sha256: Mapping[str, str] = field(default_factory=dict)
    """Of each task's documents."""
    plain_text: bool = False
    """Whether no chat template is applied, whatever the recipe says: the items are of running text."""


def load_tasks(
    entries: Sequence[ExerciseTasks | ClozeTasks | HarnessTasks],
    max_new_tokens: int,
    mirror: str | None = None,
    texts: Sequence[Text] = (),
) -> list[LoadedTasks]:
    """All tasks of the entries, with their data.

    Args:
        entries: as a recipe lists them.
        max_new_tokens: of an answer to an exercise.
        mirror: a folder with copies of the hub's data sets.
        texts: held out, of which cloze items are made.

    Raises:
        BadInputError: an unknown task, data that cannot be read or are not those of the recipe, a metric that is not a
            mean over items, or a task that is in two entries.
    """
    loaded: list[LoadedTasks] = []
    for entry in entries:
        if isinstance(entry, ExerciseTasks):
            made = exercise_tasks(entry, max_new_tokens)
            for kind, task in zip(entry.kinds, made, strict=True):
                name = exercise_entry(kind)
                loaded.append(LoadedTasks(name, {name: task}, METRIC, data_sha256={name: documents_sha256(task)}))
        elif isinstance(entry, ClozeTasks):
            cloze = cloze_task(entry, texts)
            hashes = {CLOZE: documents_sha256(cloze)}
            loaded.append(
                LoadedTasks(
                    CLOZE,
                    {CLOZE: cloze},
                    CLOZE_METRIC,
                    cluster=CLOZE_CLUSTER,
                    data_sha256=hashes,
                    plain_text=True,
                )
            )
        else:
            loaded.append(_load_entry(entry, mirror))
    owners: dict[str, str] = {}
    for each in loaded:
        for name in each.tasks:
            if name in owners:
                raise BadInputError(
                    f"the task {name} is both in {owners[name]} and in {each.name} of evaluate.recipe.tasks, and its "
                    f"items would count twice; take one of the two out"
                )
            owners[name] = each.name
    return loaded


def _load_entry(entry: HarnessTasks, mirror: str | None) -> LoadedTasks:
    tasks = harness_tasks(entry.name, mirror, revision_of(entry))
    for name, task in tasks.items():
        check_version(name, task, entry)
        check_metric(name, task, entry.metric)
        check_documents(name, task, entry)
        check_scoring(name, task)
        if entry.num_fewshot is not None:
            task.set_config(key="num_fewshot", value=entry.num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    hashes = {name: documents_sha256(task) for name, task in tasks.items()}
    check_data(entry, data_digest(hashes))
    return LoadedTasks(entry.name, tasks, entry.metric, entry.filter, entry.limit, entry.cluster, hashes)


def data_digest(hashes: Mapping[str, str]) -> str:
    """Hex sha256 of an entry's data out of that of each of its tasks."""
    return content_digest(hashes.items())


@cache
def _manager() -> TaskManager:
    # Reading the thousands of YAML files that the harness ships takes seconds.
    return TaskManager()


def harness_tasks(name: str, mirror: str | None = None, revision: str | None = None) -> dict[str, ConfigurableTask]:
    """The tasks of a task, group or tag of the harness by name, with their data: the same documents at each launch.

    Args:
        mirror: a folder with copies of the hub's data sets.
        revision: the commit of their data set on the hub; where None, the harness decides.

    Raises:
        BadInputError: there is no such task, or its data cannot be read.
        TransientStoreError: the hub cannot be reached for them.
    """
    manager = _manager()
    if name not in manager.all_tasks:
        raise BadInputError(f"the harness has no task or group {name!r}; list the names with: lm-eval ls tasks")
    instead = "name a folder with copies of the data sets as `mirror` in the stage's runtime"
    if mirror is None:
        advice = f"check that this machine may read the set, or {instead}"
    else:
        advice = (
            f"put a whole copy of it into {mirror}, the `mirror` of the stage's runtime, which is read in the place of "
            f"the hub"
        )
    with (
        faults_told(
            f"the data of the evaluation set {name}", advice=advice, instead=instead if mirror is None else None
        ),
        data_sets_from(mirror, revision),
        fixed_random_state(),
    ):
        tasks: dict[str, ConfigurableTask] = manager.load(name)["tasks"]
        for task in tasks.values():
            _keep_documents(task)
    return tasks


def _keep_documents(task: ConfigurableTask) -> None:
    """A task makes its documents anew whenever it is asked for them, and one that shuffles would ask one question and
    judge the answer by another."""
    documents = task.eval_docs
    for split in ("test_docs", "validation_docs"):
        setattr(task, split, partial(_same, documents))


def _same(documents: datasets.Dataset) -> datasets.Dataset:
    return documents
