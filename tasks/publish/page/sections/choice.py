"""Which model went on to be published, and what that choice rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.artifacts.store import Store
from tasks.publish.page.blocks import Grid, Note, Section
from tasks.publish.page.material import StageRecord, object_json, of_stage
from tasks.publish.tables import MISSING, Table, with_error

_MEASURED = (
    ("texts", "bits per byte of texts", 4),
    ("answers", "bits per byte of answers", 4),
    ("exercises", "exercises", 3),
    ("cloze", "cloze items", 3),
)


def choice_sections(records: Sequence[StageRecord], store: Store) -> list[Section]:
    """One section for each finished choice."""
    sections = []
    for record in of_stage(records, "choose"):
        choice = object_json(store, record, "choice.json")
        if choice is None:
            continue
        note = (
            f"{choice['reason']}. Measured on what the evaluation does not read: held-out texts after its own and "
            f"cloze items of them, conversations that the fine-tuning never saw, exercises of the split dev. Rule, "
            f"fixed before: {choice['rule']}."
        )
        blocks = [Note(note), Grid(_candidates(choice), "The candidates; ± is one standard error")]
        if choice["minus_default"]:
            blocks.append(Grid(_differences(choice), f"Each minus {choice['default']}, paired over the same items"))
        sections.append(Section(f"choice-{record.label}", "The model that goes on", tuple(blocks)))
    return sections


def _candidates(choice: Mapping[str, Any]) -> Table:
    rows = []
    for name, model in choice["models"].items():
        verdict = "chosen" if name == choice["chosen"] else choice["verdicts"].get(name, "")
        stops = model.get("stops")
        rows.append(
            (
                name,
                *(with_error(model.get(key), digits=digits) for key, _, digits in _MEASURED),
                f"{stops['stopped']} of {stops['prompts']}" if stops else MISSING,
                verdict,
            )
        )
    return Table(("model", *(title for _, title, _ in _MEASURED), "stops", ""), tuple(rows))


def _differences(choice: Mapping[str, Any]) -> Table:
    rows = [
        (name, *(with_error(pair.get(key), "difference", digits) for key, _, digits in _MEASURED))
        for name, pair in choice["minus_default"].items()
    ]
    return Table((f"minus {choice['default']}", *(title for _, title, _ in _MEASURED)), tuple(rows))
