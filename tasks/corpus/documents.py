"""The documents of a corpus' sources, before any tokenizer: texts and conversations in Unicode's composed form (NFC).

Some tokenizers compose characters themselves. Doing it here keeps a document's bytes, and with them bits per byte and
the choice of what is held out, the same for all.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import sha256_hex
from tasks.benchmarks.data_sets import faults_told
from tasks.corpus.stage import (
    ExercisesSource,
    FilesSource,
    HubSource,
    InstructionsSource,
    Source,
    StdlibCodeSource,
    StdlibDocsSource,
)
from tasks.exercises import generate
from tasks.exercises.holdout import Message, conversation_text
from tasks.exercises.library_text import documents_sha256
from tasks.modeling.conversation import ROLES, read_turn

_BUILDERS = {"json": "json", "jsonl": "json", "parquet": "parquet", "text": "text"}


@dataclass(frozen=True)
class Document:
    """A text, or a conversation (then `messages` is not empty and `content` its canonical form)."""

    content: str
    messages: tuple[Message, ...]
    source: str

    @property
    def kind(self) -> str:
        return "chat" if self.messages else "text"

    def sha256(self) -> str:
        """Hash of the whole content, which tells the pieces of one document from those of another."""
        return sha256_hex(self.content.encode())


def load_documents(source: Source, instructions: Path | None) -> Iterator[Document]:
    """The documents of one source in its order; `instructions` is the input's instructions.jsonl, if there is one.

    Raises:
        BadInputError: the source cannot be read, is not what its hash says, or a record lacks the field.
    """
    match source:
        case StdlibDocsSource() | StdlibCodeSource():
            yield from _library(source)
        case ExercisesSource():
            for kind in source.kinds:
                for exercise in generate(kind, "train", source.count, source.seed, source.difficulty):
                    turns = [
                        {"role": "user", "content": exercise.prompt},
                        {"role": "assistant", "content": exercise.answer},
                    ]
                    yield _conversation(turns, f"exercises/{kind}")
        case InstructionsSource():
            if instructions is None:
                raise BadInputError(
                    'the source "instructions" needs an artifact of evolve or clean as the input "instructions"; add '
                    "one or remove the source"
                )
            yield from _records(source, "instructions", None, "messages", _json_lines(instructions))
        case FilesSource():
            if source.content_sha256 is not None and source.sha256() != source.content_sha256:
                raise BadInputError(
                    f"{', '.join(source.paths)} changed since the profile was resolved; run again, which takes the "
                    f"new content as another corpus"
                )
            yield from _records(source, "files", source.text_field, source.messages_field, _file_records(source))
        case HubSource():
            name = f"hub/{source.dataset}"
            yield from _records(source, name, source.text_field, source.messages_field, _hub_records(source))


def _library(source: StdlibDocsSource | StdlibCodeSource) -> Iterator[Document]:
    texts = source.texts()
    if source.content_sha256 is not None and documents_sha256(texts) != source.content_sha256:
        raise BadInputError(
            "the standard library here has other text than where the profile was resolved; use one Python version on "
            "all machines, or files as the source"
        )
    for text in texts:
        yield _text(text, source.kind)


def _text(text: str, source: str) -> Document:
    return Document(unicodedata.normalize("NFC", text), (), source)


def _conversation(turns: list[dict[str, str]], source: str) -> Document:
    """White space around a turn is not part of it: many templates trim it, and an answer must be read as it is kept."""
    messages = tuple(Message(turn["role"], unicodedata.normalize("NFC", turn["content"]).strip()) for turn in turns)
    return Document(conversation_text(messages), messages, source)


def _records(
    source: HubSource | FilesSource | InstructionsSource,
    name: str,
    text_field: str | None,
    messages_field: str | None,
    records: Iterator[Mapping[str, Any]],
) -> Iterator[Document]:
    field = text_field or messages_field or ""
    for index, record in enumerate(records):
        if source.limit is not None and index >= source.limit:
            return
        value = record.get(field)
        if text_field is not None and isinstance(value, str):
            yield _text(value, name)
        elif messages_field is not None and (turns := _turns(value, f"record {index} of {name}")):
            yield _conversation(turns, name)
        else:
            wanted = "text" if text_field is not None else "a list of {role, content} or {from, value}"
            raise BadInputError(
                f"record {index} of {name} has no {wanted} in the field {field!r}, only the fields "
                f"{', '.join(sorted(record))}; correct the source's field"
            )


def _turns(value: Any, where: str) -> list[dict[str, str]]:
    """The turns with the chat template's roles; nothing if the value is no conversation.

    Raises:
        BadInputError: a speaker is unknown.
    """
    turns = []
    for written in value if isinstance(value, list) else ():
        turn = read_turn(written)
        if turn is None:
            return []
        if turn.role is None:
            raise BadInputError(
                f"{where} has a turn of the unknown speaker {turn.speaker!r}; name the speakers {', '.join(ROLES)}, or "
                f"take the record out"
            )
        turns.append({"role": turn.role, "content": turn.content})
    return turns


def _json_lines(file: Path) -> Iterator[Mapping[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _file_records(source: FilesSource) -> Iterator[Mapping[str, Any]]:
    files = [str(path) for path in source.files()]
    options = {"sample_by": "document"} if source.format == "text" else {}
    return _stream(", ".join(source.paths), _BUILDERS[source.format], data_files=files, split="train", **options)


def _hub_records(source: HubSource) -> Iterator[Mapping[str, Any]]:
    where = f"{source.dataset} at {source.revision[:12]}"
    return _stream(where, source.dataset, name=source.config, split=source.split, revision=source.revision)


def _stream(where: str, builder: str, **options: Any) -> Iterator[Mapping[str, Any]]:
    """Records as they are read; nothing is kept in the data sets' cache."""
    # It reads where its caches are when it is imported, which a decontamination decides.
    import datasets

    with faults_told(where, advice="correct the corpus source", instead="take the documents from files"):
        yield from datasets.load_dataset(builder, streaming=True, **options)
