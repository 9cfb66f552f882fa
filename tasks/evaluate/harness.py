"""One model under lm-eval: the same tasks, template date, seeds and greedy decoding for every model.

`lm_eval.evaluate` is the loop inside `lm_eval.simple_evaluate`; called directly, tasks are loaded once for all models,
each keeps its own number of examples, and no report on the machine is collected and no bootstrap run for each model.
"""

from __future__ import annotations

import math
import random
import sys
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import lm_eval
import numpy as np
import torch
from lm_eval.api.model import LM

from tasks.artifacts.errors import BadInputError
from tasks.benchmarks.loading import LoadedTasks, data_digest
from tasks.evaluate.plain_text import PlainTextLM
from tasks.evaluate.stage import EvaluateRecipe


@dataclass(frozen=True)
class Item:
    """One model's answer to one item."""

    entry: str
    """What the recipe calls the task, or the group that it is of."""
    task: str
    item: int
    document: str
    """Hex sha256 of the item's document, as lm-eval makes it: two models are compared on equal ones only."""
    cluster: str | None
    """Equal for items that are one question asked several times; None where the recipe names no field for it."""
    prompt: str
    target: str
    completion: str
    outcome: float


def evaluate_entry(lm: LM, entry: LoadedTasks, recipe: EvaluateRecipe) -> tuple[list[Item], dict[str, Any]]:
    """All items of an entry in the order of tasks and documents, and by what they were made: versions, data, metrics.

    Raises:
        BadInputError: a task has no filter of the recipe's name, or an outcome is not a number.
    """
    _seed(recipe.seed)
    for task in entry.tasks.values():
        task.set_fewshot_seed(seed=recipe.seed)
    as_chat = recipe.apply_chat_template and not entry.plain_text
    if isinstance(lm, PlainTextLM):
        lm.plain_text = entry.plain_text
    results = lm_eval.evaluate(
        lm,
        {"tasks": entry.tasks, "groups": {}},
        limit=entry.limit,
        bootstrap_iters=0,
        apply_chat_template=as_chat,
        fewshot_as_multiturn=as_chat,
    )
    items: list[Item] = []
    tasks: dict[str, Any] = {}
    for name, task in entry.tasks.items():
        samples = [sample for sample in results["samples"][name] if sample["filter"] == entry.filter]
        if not samples:
            filters = sorted({sample["filter"] for sample in results["samples"][name]})
            raise BadInputError(f"task {name} has no filter {entry.filter!r}; choose one of: {', '.join(filters)}")
        of_data = task.DATASET_PATH or name
        items += [
            _item(entry, name, of_data, sample) for sample in sorted(samples, key=lambda each: int(each["doc_id"]))
        ]
        tasks[name] = {
            "version": str(results["versions"][name]),
            "num_fewshot": results["n-shot"][name],
            "metric": entry.metric,
            "output_type": task.OUTPUT_TYPE,
            "plain_text": entry.plain_text,
            "data_sha256": entry.data_sha256.get(name),
        }
    harness = {"lm_eval": version("lm_eval"), "tasks": tasks, "data": {entry.name: data_digest(entry.data_sha256)}}
    return items, harness


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    # What tells the language of an answer to IFEval draws numbers too, from a generator of its own.
    if (langdetect := sys.modules.get("langdetect")) is not None:
        langdetect.DetectorFactory.seed = seed


def _item(entry: LoadedTasks, task: str, of_data: str, sample: dict[str, Any]) -> Item:
    answer = sample["filtered_resps"][0] if len(sample["filtered_resps"]) == 1 else sample["filtered_resps"]
    outcome = float(sample[entry.metric])
    if not math.isfinite(outcome):
        raise BadInputError(
            f"task {task} gives the outcome {outcome} for its document {sample['doc_id']}, of which there is no mean; "
            f"choose another metric or leave the task out"
        )
    return Item(
        entry=entry.name,
        task=task,
        item=int(sample["doc_id"]),
        document=str(sample["doc_hash"]),
        # One question may be in several tasks of a group; another data set's may have the same number.
        cluster=f"{of_data}/{sample['doc'][entry.cluster]}" if entry.cluster is not None else None,
        prompt=_text(sample["arguments"][0][0]),
        target=str(sample["target"]),
        # For a multiple choice: the log-likelihood of each, and whether it is what greedy decoding gives.
        completion=answer if isinstance(answer, str) else str(answer),
        outcome=outcome,
    )


def _text(prompt: Any) -> str:
    # A conversation that a server renders is its JSON, in an object of the harness.
    return str(getattr(prompt, "prompt", prompt))
