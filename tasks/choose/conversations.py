"""Held-out conversations and dev exercises as token ids, with the tokens that a candidate is asked for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import date

import numpy as np
from transformers import PreTrainedTokenizerFast

from tasks.benchmarks.declare import ExerciseTasks
from tasks.exercises import Exercise, generate
from tasks.logits.rows import Row
from tasks.modeling.predicted import Asked
from tasks.modeling.template_date import rendered


def asked_of(row: Row) -> Asked:
    """The assistant's tokens of a conversation, each turn's end included: what fine-tuning learns."""
    return Asked(row.input_ids.tolist(), np.flatnonzero(row.loss_mask).tolist())


def exercises_of(tasks: ExerciseTasks) -> list[Exercise]:
    """All questions of the split, kind by kind."""
    return [
        exercise
        for kind in tasks.kinds
        for exercise in generate(kind, tasks.split, tasks.items_per_kind, tasks.seed, tasks.difficulty)
    ]


def asked_exercises(
    tokenizer: PreTrainedTokenizerFast, exercises: Sequence[Exercise], end: int, day: date
) -> list[Asked]:
    """Question under the chat template, answer, `end`; asked for are the answer and the end.

    Question and answer are encoded apart, so that no token spans both.
    """
    asked = []
    for exercise in exercises:
        question = rendered(tokenizer, [{"role": "user", "content": exercise.prompt}], day)
        ids = tokenizer.encode(question, add_special_tokens=False)
        answer = tokenizer.encode(exercise.answer, add_special_tokens=False)
        whole = [*ids, *answer, end]
        asked.append(Asked(whole, range(len(ids), len(whole))))
    return asked


def is_answered(asked: Asked, likeliest: Sequence[int], ends: Collection[int]) -> bool:
    """Whether greedy decoding, which writes the `likeliest` token at each target, gives the answer and an end token."""
    *answer, _end = (asked.ids[at] for at in asked.targets)
    return list(likeliest[:-1]) == answer and likeliest[-1] in ends
