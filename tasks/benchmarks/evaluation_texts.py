"""The texts of an evaluation's items: the question as a model reads it, its parts, and the right answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.benchmarks.declare import ExerciseTasks
from tasks.benchmarks.evaluation_sets import HarnessSet, set_revision
from tasks.exercises import generate

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask


@dataclass(frozen=True)
class Item:
    """One document of a set."""

    name: str
    """Task and number, such as mmlu_anatomy/17."""
    prompts: tuple[str, ...]
    """The rendered question, then each field of the document that stands in it: the question without its choices."""
    answers: tuple[str, ...]


def items_of(evaluation: ExerciseTasks | HarnessSet, mirror: str | None = None) -> Iterator[Item]:
    """The items of a set; `mirror` is a folder with copies of the hub's data sets.

    Raises:
        BadInputError: there is no such set, or its data cannot be read.
    """
    if isinstance(evaluation, ExerciseTasks):
        for kind in evaluation.kinds:
            made = generate(kind, evaluation.split, evaluation.items_per_kind, evaluation.seed, evaluation.difficulty)
            for number, exercise in enumerate(made):
                yield Item(f"exercise_{kind}/{number}", (exercise.prompt,), (exercise.answer,))
        return
    # The harness takes seconds to import, and its libraries read their environment then.
    from tasks.benchmarks.loading import harness_tasks

    for name, task in harness_tasks(evaluation.name, mirror, set_revision(evaluation)).items():
        for number, document in enumerate(task.eval_docs):
            yield _item(f"{name}/{number}", task, document)


def _item(name: str, task: ConfigurableTask, document: Mapping[str, Any]) -> Item:
    choices = task.doc_to_choice(document) if task.config.doc_to_choice is not None else []
    question = task.doc_to_text(document)
    # Where the question is the number of a choice, the choices are the texts that are read (winogrande).
    prompts = _texts(list(choices) if isinstance(question, int) else question, choices)
    fields = [value.strip() for value in document.values() if isinstance(value, str) and value.strip()]
    parts = [field for field in fields if any(field in prompt and field != prompt for prompt in prompts)]
    return Item(name, tuple(dict.fromkeys([*prompts, *parts])), tuple(_texts(task.doc_to_target(document), choices)))


def _texts(value: Any, choices: list[Any]) -> list[str]:
    """Texts in what a task gives for a question or an answer: a text, the number of a choice, or several of these."""
    if isinstance(value, str):
        return [value] if value.strip() else []
    if isinstance(value, int) and not isinstance(value, bool):
        return [str(choices[value])] if 0 <= value < len(choices) else []
    return [text for each in value for text in _texts(each, choices)] if isinstance(value, list | tuple) else []
