"""Plans transplants from tokenizers alone: `python -m tasks.surgeon.preview REQUEST ANSWER`.

REQUEST is a JSON list of {label, student, donor, recipe}, the first two being folders with a tokenizer.json. ANSWER
becomes a list of {label, record} in the same order, or {label, error} with the sentence of a refusal. No weights are
read and nothing is written to a store.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.artifacts.errors import MediusError
from tasks.modeling.tokenizer_files import load_tokenizer, real_vocab_size
from tasks.surgeon.plan import plan_transplant
from tasks.surgeon.stage import TransplantRecipe


def preview(request: Mapping[str, Any]) -> dict[str, Any]:
    """The record of one planned transplant, as surgery.json will have it, or why it is refused."""
    try:
        recipe = TransplantRecipe.model_validate(request["recipe"])
        student, donor = load_tokenizer(Path(request["student"])), load_tokenizer(Path(request["donor"]))
        multiple = recipe.pad_rows_to_multiple_of
        rows = recipe.rows or math.ceil(real_vocab_size(donor) / multiple) * multiple
        plan = plan_transplant(student, donor, recipe, rows)
    except MediusError as error:
        return {"label": request["label"], "error": str(error)}
    return {"label": request["label"], "record": plan.record()}


def main(request: Path, answer: Path) -> None:
    """Answers every request of a file."""
    answers = [preview(entry) for entry in json.loads(request.read_text(encoding="utf-8"))]
    answer.write_text(json.dumps(answers, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
