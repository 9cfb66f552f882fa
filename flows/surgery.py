"""Plans of transplants on the terminal: before anything ran (`plan --surgery`), or of an artifact (`inspect`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError, WorkerFailedError
from tasks.artifacts.manifest import Manifest
from tasks.artifacts.store import Store
from tasks.models.layout import ALLOWED_FILES, WEIGHTS
from tasks.models.stage import STAGE as MODELS
from tasks.models.stage import ModelsConfig
from tasks.runtime.declare import Step
from tasks.surgeon.kinds import KINDS
from tasks.surgeon.stage import STAGE as SURGEON
from tasks.surgeon.stage import TransplantRecipe

SURGERY_FILE = "surgery.json"
_PARTS = ("shared", "mapped", "composed", "approximated")
_INVENTED = ("composed", "approximated")
_NUM_KINDS = 12
_NUM_EXAMPLES = 3
"""Of a kind, on the terminal; surgery.json has a dozen."""
_NUM_PIECES = 8
_WIDTH = 100
_FROM_ROLES = ("original", "model", "student", "base")
"""Of a stage that keeps a vocabulary: the input that it has it from."""


def print_surgeries(steps: Sequence[Step], store: Store, console: Console, folder: Path) -> None:
    """Plans every transplant of a profile from tokenizers alone, prints them, and keeps each as a JSON of `folder`.

    Raises:
        BadInputError: a tokenizer cannot be had, or a transplant will be refused; after the plans of the others.
    """
    transplants = [step for step in steps if step.stage is SURGEON and isinstance(step.config.recipe, TransplantRecipe)]
    if not transplants:
        console.print("the profile has no transplant")
        return
    with tempfile.TemporaryDirectory() as scratch:
        answers = _preview(transplants, steps, store, Path(scratch))
    for answer in answers:
        if "record" in answer:
            print_plan(answer["label"], answer["record"], console)
            for note in answer["notes"]:
                _say(console, f"note: {note}")
            file = folder / f"{answer['label']}.json"
            folder.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(answer["record"], ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            console.print(str(file), soft_wrap=True, markup=False)
    refused = next((answer for answer in answers if "error" in answer), None)
    if refused is not None:
        raise BadInputError(f"{refused['label']}: {refused['error']}")


def _preview(transplants: Sequence[Step], steps: Sequence[Step], store: Store, folder: Path) -> list[dict[str, Any]]:
    """Runs the plans in a process of their own: this one loads neither transformers nor torch."""
    wanted: dict[str, Path] = {}
    missing: list[dict[str, Any]] = []

    def files_of(step: Step, *, weights: bool = False) -> str:
        origin = _origin(step, store, weights=weights)
        target = wanted.get(origin.key)
        if target is None:
            target = wanted[origin.key] = folder / f"{origin.label}-{origin.key[:16]}"
            artifact = Artifact(store, origin.directory)
            manifest = artifact.manifest()
            if manifest is not None:
                small = tuple(entry for entry in manifest.objects if _is_small(entry.name))
                artifact.fetch(manifest.model_copy(update={"objects": small}), target)
            else:
                assert isinstance(origin.config, ModelsConfig)
                source = origin.config.recipe.source.model_dump(mode="json")
                missing.append({"source": source, "target": str(target)})
        return str(target)

    requests = [
        {
            "label": step.label,
            "student": files_of(step.inputs["student"]),
            "student_config": files_of(step.inputs["student"], weights=True),
            "donor": files_of(step.inputs["donor"]),
            "teachers": {name: files_of(teacher) for name, teacher in _teachers(step, steps).items()},
            "recipe": step.config.recipe.model_dump(mode="json"),
        }
        for step in transplants
    ]
    if missing:
        _run("tasks.models.tokenizer_only", _written(folder / "tokenizers.json", missing))
    answer = folder / "answer.json"
    _run("tasks.surgeon.preview", _written(folder / "request.json", requests), answer)
    answers: list[dict[str, Any]] = json.loads(answer.read_text(encoding="utf-8"))
    return answers


def _teachers(transplant: Step, steps: Sequence[Step]) -> dict[str, Step]:
    """Whose logits are learnt in the vocabulary that a transplant gives, by label, but for the donor."""
    stores = {
        store.key: store
        for step in steps
        if transplant.key in {source.key for source in step.inputs.values()}
        for role, store in step.inputs.items()
        if role.partition(".")[0] == "logits"
    }
    # Imported logits have the tokenizer of the teacher that they are of.
    teachers = [store.inputs.get("teacher") or store.inputs.get("tokenizer") for store in stores.values()]
    donor = transplant.inputs["donor"].key
    return {teacher.label: teacher for teacher in teachers if teacher is not None and teacher.key != donor}


def _origin(step: Step, store: Store, *, weights: bool = False) -> Step:
    """The step whose tokenizer this one's result will have: itself if it is finished, else towards its models.

    `weights`: whose weights it will have, which a transplant does not take from its donor.
    """
    while step.stage is not MODELS and Artifact(store, step.directory).manifest() is None:
        transplants = isinstance(step.config.recipe, TransplantRecipe) and not weights
        roles = ("donor", *_FROM_ROLES) if transplants else _FROM_ROLES
        role = next((role for role in roles if role in step.inputs), None)
        if role is None:
            raise BadInputError(
                f"the tokenizer of {step.label} is not known before it has run; run the profile up to there first"
            )
        step = step.inputs[role]
    return step


def _is_small(name: str) -> bool:
    return not fnmatch(name, WEIGHTS) and any(fnmatch(name, pattern) for pattern in ALLOWED_FILES)


def _written(file: Path, value: object) -> Path:
    file.write_text(json.dumps(value), encoding="utf-8")
    return file


def _run(module: str, *files: Path) -> None:
    command = [sys.executable, "-m", module, *map(str, files)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "DO_NOT_TRACK": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        if done.returncode == BadInputError.exit_code:
            raise BadInputError(said)
        raise WorkerFailedError(f"{module} ended with code {done.returncode}: {said}")


def print_record(artifact: Artifact, manifest: Manifest, console: Console) -> None:
    """Prints surgery.json of a finished artifact: the plan of a transplant, or what a reversion noted."""
    entry = manifest.object(SURGERY_FILE)
    if entry is None:
        raise BadInputError(f"{artifact.uri} has no {SURGERY_FILE}; it is not the result of a surgery")
    record = json.loads(artifact.store.get(artifact.path(entry.path)))
    if record["mode"] == "transplant":
        print_plan(manifest.label, record, console)
        return
    console.print(artifact.uri, soft_wrap=True, markup=False)
    for name, value in record.items():
        shown = value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)
        console.print(f"{name:24} {shown}", soft_wrap=True, markup=False)


def print_plan(label: str, record: Mapping[str, Any], console: Console) -> None:
    """Prints a plan's record: what each kind of token is made of, the special ones, texts, examples."""
    _say(console, "")
    _say(
        console,
        f"{label}: {record['student_tokens']:,} tokens become {record['real_vocab_size']:,}, in {record['rows']:,} "
        f"rows ({record['padding_rows']:,} of padding); method {record['method']}",
    )
    console.print(_kinds_table(record["counts"]))
    _say_specials(record, console)
    shares = ", ".join(
        f"{kind.replace('_', '-')} {counts['invented']} of {counts['tokens']}"
        for kind, counts in record["texts"].items()
    )
    _say(console, f"tokens of sample texts whose row is invented: {shares}")
    for kind, some in _largest(record).items():
        shown = "   ".join(_made(entry, record["method"]) for entry in some[:_NUM_EXAMPLES])
        _say(console, f"{kind:14} {shown}")


def _say(console: Console, line: str) -> None:
    console.print(Text(line), width=min(_WIDTH, console.width))


def _kinds_table(counts: Mapping[str, Mapping[str, int]]) -> Table:
    """Kinds of the donor's tokens by part, and the student's that are lost; a dot stands for none."""
    parts = [part for part in _PARTS if counts[part]["total"]]
    table = Table("kind", width=min(_WIDTH, 20 + 14 * (len(parts) + 2)))
    for name in (*parts, "all", "lost"):
        table.add_column(name, justify="right")
    present = [kind for kind in KINDS if any(counts[part].get(kind) for part in (*_PARTS, "student_only"))]
    for kind in (*present, "total"):
        numbers = [counts[part].get(kind, 0) for part in parts]
        if kind == "total":
            table.add_section()
        cells = (*numbers, sum(numbers), counts["student_only"].get(kind, 0))
        table.add_row(kind, *(f"{number:,}" if number else "·" for number in cells))
    return table


def _say_specials(record: Mapping[str, Any], console: Console) -> None:
    if record["mapped"]:
        table = Table("special token", "takes the rows of")
        for token in record["mapped"]:
            table.add_row(Text(token["donor"]), Text(_quoted(token["student"])))
        console.print(table)
    unmapped = record["unmapped_specials"]
    if unmapped:
        _say(console, f"special tokens without a counterpart: {_some(unmapped)}")
    if record["idle"]["rows"]:
        _say(
            console,
            f"{record['idle']['rows']:,} rows are the mean of tokens that the student has no use for: "
            f"{_some(record['idle']['tokens'])}",
        )
    for shadowed in record.get("shadowed_ends", ()):
        _say(
            console,
            f"{shadowed['end']} ends an answer and has the row of {shadowed['taken']}, which does not: until training "
            f"has set them apart greedy decoding takes {shadowed['taken']}, the lower id, for both",
        )
    for doubled in record.get("rows_of_text", ()):
        _say(
            console,
            f"{doubled['token']} has the row of the text {_quoted(doubled['text'])}: until training has set them apart "
            f"the model gives each of them half of the probability",
        )
    if record["proposed"]:
        _say(console, f"consider in special_tokens too: {json.dumps(record['proposed'], ensure_ascii=False)}")


def _some(names: Sequence[str], number: int = 6) -> str:
    more = f" and {len(names) - number} more" if len(names) > number else ""
    return ", ".join(names[:number]) + more


def _largest(record: Mapping[str, Any]) -> dict[str, Sequence[Mapping[str, Any]]]:
    """Examples of the kinds with the most invented tokens."""
    counts, examples = record["counts"], record["examples"]
    by_number = sorted(examples, key=lambda kind: -sum(counts[part].get(kind, 0) for part in _INVENTED))
    shown = set(by_number[:_NUM_KINDS])
    return {kind: examples[kind] for kind in KINDS if kind in shown}


def _made(entry: Mapping[str, Any], method: str) -> str:
    pieces: Sequence[str] | str | None = entry["made_of"]
    if pieces is None or pieces == "idle":
        return f"{_quoted(entry['token'])} by {method}" if pieces is None else f"{_quoted(entry['token'])} = idle"
    texts = [_quoted(piece) for piece in pieces]
    more = f" + {len(texts) - _NUM_PIECES} more" if len(texts) > _NUM_PIECES else ""
    return f"{_quoted(entry['token'])} = {' + '.join(texts[:_NUM_PIECES])}{more}"


def _quoted(text: str) -> str:
    """With white space and what no terminal shows made visible; `shown` has written parts of characters as \\xe6."""
    visible = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"'{visible}'"
