"""The generated exercises as tasks of the harness: local, one a kind, judged by the generator's own rule.

The items are handed over in memory. Through a JSONL file the harness would read them with pyarrow's type inference,
which turns an answer such as "2024-07-26" into a timestamp, and would build a cache folder for every kind.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from tasks.benchmarks.declare import ExerciseTasks, exercise_entry
from tasks.exercises import Exercise, generate, is_correct

VERSION = 1
"""Raised when prompts, answers or their rule change."""
METRIC = "exact_match"


def _outcome(document: dict[str, Any], completions: list[str]) -> dict[str, float]:
    return {METRIC: float(is_correct(Exercise(**document), completions[0]))}


def exercise_tasks(tasks: ExerciseTasks, max_new_tokens: int) -> list[ConfigurableTask]:
    """One task a kind, named `exercise_<kind>`: greedy, ended by the model's own end token.

    Raises:
        BadInputError: an unknown kind or difficulty, or too few exercises.
    """
    made = []
    for kind in tasks.kinds:
        items = generate(kind, tasks.split, tasks.items_per_kind, tasks.seed, tasks.difficulty)
        rows = [asdict(item) for item in items]
        config = {
            "task": exercise_entry(kind),
            "custom_dataset": lambda rows=rows, **_: {"test": Dataset.from_list(rows)},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "prompt",
            "doc_to_target": "answer",
            "process_results": _outcome,
            "metric_list": [{"metric": METRIC, "aggregation": "mean", "higher_is_better": True}],
            # The harness adds the text of the model's end token.
            "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": max_new_tokens},
            "num_fewshot": 0,
            "metadata": {"version": VERSION},
        }
        made.append(ConfigurableTask(config=config))
    return made
