"""Plans transplants without any weights: `python -m tasks.surgeon.preview REQUEST ANSWER`.

REQUEST is a JSON list of {label, student, donor, recipe} and, where they are known, {student_config, teachers}.
`student`, `donor` and each teacher (by name) are folders with a tokenizer.json, and with config.json and
generation_config.json where the model has them; `student_config` is a folder with the config of the student's weights,
whose tokenizer may be another one. ANSWER becomes a list of {label, record, notes} in the same order, or {label, error}
with the sentence of a refusal. Nothing is written to a store.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from tasks.artifacts.errors import BadInputError, MediusError
from tasks.modeling.tokenizer_files import load_tokenizer, real_vocab_size
from tasks.surgeon.ends import listed_ends
from tasks.surgeon.new_rows import check_donor
from tasks.surgeon.plan import plan_transplant
from tasks.surgeon.stage import TransplantRecipe


def preview(request: Mapping[str, Any]) -> dict[str, Any]:
    """The record of one planned transplant, as surgery.json will have it, or why it is refused."""
    try:
        recipe = TransplantRecipe.model_validate(request["recipe"])
        donor_directory = Path(request["donor"])
        student, donor = load_tokenizer(Path(request["student"])), load_tokenizer(donor_directory)
        multiple = recipe.pad_rows_to_multiple_of
        rows = recipe.rows or math.ceil(real_vocab_size(donor) / multiple) * multiple
        plan = plan_transplant(student, donor, recipe, rows, listed_ends(donor_directory))
        configs = (Path(request.get("student_config", request["student"])), donor_directory)
        if all((directory / "config.json").is_file() for directory in configs):
            check_donor(recipe, plan, *configs, from_configs=True)
        notes = [
            note
            for name, directory in request.get("teachers", {}).items()
            for note in differing_chats(donor, load_tokenizer(Path(directory)), name)
        ]
    except MediusError as error:
        return {"label": request["label"], "error": str(error)}
    return {"label": request["label"], "record": plan.record(), "notes": notes}


def differing_chats(donor: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast, name: str) -> list[str]:
    """What to know of a donor that chats otherwise than `teacher`, from whose chats its student will learn.

    Raises:
        BadInputError: the student would have no chat template, or would wait for another end than it learns.
    """
    advice = "name a donor that chats as the teacher does, such as the smallest Instruct model of its family"
    if teacher.chat_template and not donor.chat_template:
        raise BadInputError(f"the donor has no chat template and the teacher {name} has one; {advice}")
    if teacher.eos_token != donor.eos_token:
        raise BadInputError(
            f"the donor ends with {donor.eos_token} and the teacher {name} with {teacher.eos_token}, so that the "
            f"student would not stop where it learns to; {advice}"
        )
    if teacher.chat_template != donor.chat_template:
        return [f"the donor's chat template is not that of the teacher {name}, whose chats the student learns"]
    return []


def main(request: Path, answer: Path) -> None:
    """Answers every request of a file."""
    answers = [preview(entry) for entry in json.loads(request.read_text(encoding="utf-8"))]
    answer.write_text(json.dumps(answers, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
