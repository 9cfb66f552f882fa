"""Cloze items as a harness task."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from tasks.benchmarks.cloze_items import Text, cloze_items
from tasks.benchmarks.declare import CLOZE, ClozeTasks

VERSION = 1
"""Raised when the items of a text change."""
METRIC = "acc"


def cloze_task(tasks: ClozeTasks, texts: Sequence[Text]) -> ConfigurableTask:
    """The items of texts: as many as the recipe says, drawn by its seed from all places.

    Raises:
        BadInputError: the texts have too few places or different words.
    """
    items = cloze_items(tasks, texts)
    config = {
        "task": CLOZE,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(items)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": METRIC, "aggregation": "mean", "higher_is_better": True}],
        "num_fewshot": 0,
        "metadata": {"version": VERSION},
    }
    return ConfigurableTask(config=config)
