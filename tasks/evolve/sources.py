"""Rows that need no endpoint: generated exercises, ready conversations, and the texts that seeds are taken from."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import canonical_json, file_sha256, sha256_hex
from tasks.benchmarks.data_sets import faults_told
from tasks.evolve.calls import Message
from tasks.evolve.parsing import looks_like_endpoint_error
from tasks.evolve.row_sources import FileRows, HubRows, InlineRows, PackageRows, StoredRows
from tasks.evolve.rows import InstructionRow, Result
from tasks.evolve.stage import AutoEvolSource, DatasetSource, ExercisesSource
from tasks.modeling.conversation import read_turn


def from_exercises(source: ExercisesSource) -> Result:
    """Generated tasks, the levels in the order of the recipe and a repeated prompt once."""
    from tasks.exercises import generate

    rows: dict[str, InstructionRow] = {}
    offered = 0
    for difficulty in source.difficulties:
        for kind in source.kinds:
            for exercise in generate(kind, "train", source.count, source.seed, difficulty):
                offered += 1
                messages = (
                    Message(role="user", content=exercise.prompt),
                    Message(role="assistant", content=exercise.answer),
                )
                lineage = {
                    "source": "exercises",
                    "generated": True,
                    "kind": exercise.kind,
                    "difficulty": exercise.difficulty,
                    "split": "train",
                }
                rows.setdefault(exercise.prompt, InstructionRow(_id(messages), messages, lineage))
    return Result(list(rows.values()), offered, {"duplicates": offered - len(rows)})


def from_dataset(source: DatasetSource, cache: Path) -> Result:
    """Conversations as they are; malformed ones, error texts and repetitions are dropped and counted."""
    values = _sampled(_column(source.rows, cache), source.max_rows, source.seed)
    origin = (
        {"dataset": source.rows.dataset, "revision": source.rows.revision}
        if isinstance(source.rows, HubRows)
        else _content(source.rows)
    )
    rows: dict[str, InstructionRow] = {}
    counts = {"unparsed": 0, "errored": 0, "duplicates": 0}
    for index, value in values:
        messages = conversation(value)
        if messages is None:
            counts["unparsed"] += 1
        elif any(message.role == "assistant" and looks_like_endpoint_error(message.content) for message in messages):
            counts["errored"] += 1
        elif (row_id := _id(messages)) in rows:
            counts["duplicates"] += 1
        else:
            rows[row_id] = InstructionRow(row_id, messages, {"source": "dataset", "row": index, **origin})
    return Result(list(rows.values()), len(values), counts)


def _content(rows: FileRows | PackageRows) -> dict[str, Any]:
    package = {"package": rows.package} if isinstance(rows, PackageRows) else {}
    return {**package, "content_sha256": rows.content_sha256}


def offered_seeds(source: AutoEvolSource, cache: Path) -> list[tuple[str, dict[str, Any]]]:
    """The instructions that evolution starts from, each with its origin: the data at one version, and its row's index.

    Raises:
        BadInputError: a row has none.
    """
    rows = source.seeds
    origin: dict[str, Any]
    if isinstance(rows, InlineRows):
        values: Sequence[Any] = rows.instructions
        origin = {"profile": "seeds.instructions"}
    else:
        values = _column(rows, cache)
        origin = (
            {"dataset": rows.dataset, "subset": rows.subset, "split": rows.split, "revision": rows.revision}
            if isinstance(rows, HubRows)
            else {"path": rows.path, **_content(rows)}
        )
    sampled = _sampled(values, source.max_seeds, source.seed)
    return [(_instruction(value, index), {**origin, "row": index}) for index, value in sampled]


def conversation(value: Any) -> tuple[Message, ...] | None:
    """Messages of a ShareGPT or role/content list; None unless it is [system,] user, assistant, … , assistant."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return None
    messages = []
    for turn in value:
        message = _message(turn)
        if message is None:
            return None
        messages.append(message)
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    return tuple(messages) if turns and turns == ["user", "assistant"] * (len(turns) // 2) else None


def _message(turn: Any) -> Message | None:
    read = read_turn(turn)
    # A tool's turn is no part of an instruction and its answer.
    if read is None or read.role not in {"system", "user", "assistant"} or not read.content.strip():
        return None
    return Message.model_validate({"role": read.role, "content": read.content.strip()})


def _instruction(value: Any, index: int) -> str:
    if isinstance(value, str) and value.strip():
        return value
    for turn in value if isinstance(value, Sequence) and not isinstance(value, str) else ():
        message = _message(turn)
        if message is not None and message.role == "user":
            return message.content
    raise BadInputError(
        f"seed row {index} has no instruction; let evolve.recipe.source.seeds.messages_field name a field with text or "
        f"with a conversation in every row"
    )


def _sampled(values: Sequence[Any], limit: int | None, seed: int) -> list[tuple[int, Any]]:
    """(index, value) of all values, or of `limit` of them drawn by `seed`, in their own order."""
    indices: Iterable[int] = range(len(values))
    if limit is not None and limit < len(values):
        indices = sorted(random.Random(seed).sample(range(len(values)), limit))
    return [(index, values[index]) for index in indices]


def _column(rows: StoredRows, cache: Path) -> Sequence[Any]:
    """The messages of every row. `cache` is where a file is unpacked; the hub's cache is the machine's own."""
    import datasets

    datasets.disable_progress_bars()
    if isinstance(rows, HubRows):
        where = f"{rows.dataset} at {rows.revision[:12]}"
        arguments: dict[str, Any] = {
            "path": rows.dataset,
            "name": rows.subset,
            "revision": rows.revision,
            "split": rows.split,
        }
    else:
        where = rows.path
        file = str(_checked(rows))
        arguments = {"path": rows.format, "data_files": file, "split": "train", "cache_dir": str(cache)}
    with faults_told(where, advice="correct evolve.recipe.source", instead="take the rows from a file"):
        table = datasets.load_dataset(**arguments)
    if rows.messages_field not in table.column_names:
        raise BadInputError(
            f"{where} has no field {rows.messages_field!r}, only {', '.join(table.column_names)}; set messages_field "
            f"in evolve.recipe.source"
        )
    return list(table[rows.messages_field])


def _checked(rows: FileRows | PackageRows) -> Path:
    """The file, with the content that the run was planned with."""
    if rows.content_sha256 is None:
        raise BadInputError(f"{rows.path} has no content_sha256; resolve the profile first (with_identity fills it in)")
    file = rows.local_file()
    if file_sha256(file) != rows.content_sha256:
        raise BadInputError(
            f"{rows.path} is not the file that this run was planned with; restore it, or run again to plan with the "
            f"new content"
        )
    return file


def _id(messages: tuple[Message, ...]) -> str:
    return sha256_hex(canonical_json(messages))[:16]
