"""The harness tasks of a recipe, with their data."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import datasets
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from tasks.artifacts.errors import BadInputError
from tasks.benchmarks.declare import ExerciseTasks, HarnessTasks
from tasks.benchmarks.exercise_tasks import METRIC, exercise_tasks
from tasks.benchmarks.hub import data_sets_from

logging.getLogger("lm_eval").setLevel(logging.ERROR)


@dataclass(frozen=True)
class LoadedTasks:
    """The harness tasks of one entry of the recipe."""

    tasks: dict[str, ConfigurableTask]
    metric: str
    filter: str
    limit: int | None
    name: str | None = None
    """The recipe's name of the task or group; None for exercises, where every task is an entry of its own."""


def load_tasks(
    entries: Sequence[ExerciseTasks | HarnessTasks], max_new_tokens: int, mirror: str | None = None
) -> list[LoadedTasks]:
    """All tasks of the entries, with their data; `mirror` is a folder with copies of the hub's data sets.

    Raises:
        BadInputError: an unknown task, data that cannot be read, or a metric that is not a mean over items.
    """
    loaded = []
    for entry in entries:
        if isinstance(entry, ExerciseTasks):
            made = exercise_tasks(entry, max_new_tokens)
            loaded.append(LoadedTasks({task.task_name: task for task in made}, METRIC, "none", None))
            continue
        tasks = harness_tasks(entry.name, mirror)
        for name, task in tasks.items():
            check_metric(name, task, entry.metric)
            if entry.num_fewshot is not None:
                task.set_config(key="num_fewshot", value=entry.num_fewshot)
            elif task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
        loaded.append(LoadedTasks(tasks, entry.metric, entry.filter, entry.limit, entry.name))
    return loaded


@cache
def _manager() -> TaskManager:
    # Reading the thousands of YAML files that the harness ships takes seconds.
    return TaskManager()


def harness_tasks(name: str, mirror: str | None = None) -> dict[str, ConfigurableTask]:
    """The tasks of a task, group or tag of the harness by name, with their data.

    Raises:
        BadInputError: there is no such task, or its data cannot be read.
    """
    manager = _manager()
    if name not in manager.all_tasks:
        raise BadInputError(f"the harness has no task or group {name!r}; list the names with: lm-eval ls tasks")
    try:
        with data_sets_from(mirror):
            tasks: dict[str, ConfigurableTask] = manager.load(name)["tasks"]
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInputError(
            f"the data of the evaluation set {name} cannot be read ({type(error).__name__}: {reason}); check that this "
            f"machine reaches the hub and may read the set, or name a folder with copies of the data sets as `mirror` "
            f"in the stage's runtime"
        ) from error
    return tasks


def check_metric(name: str, task: ConfigurableTask, metric: str) -> None:
    """Raises BadInputError if the task has no such metric that is a mean over items."""
    usable = sorted(key for key, aggregation in task.aggregation().items() if aggregation is mean)
    if metric not in usable:
        raise BadInputError(
            f"task {name} has no metric {metric!r} that is a mean over items; choose one of: "
            f"{', '.join(usable) or 'none, so leave the task out'}"
        )
