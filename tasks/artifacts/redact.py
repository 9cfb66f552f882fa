"""Credentials never stand in what is written: records, logs, messages, what a dashboard shows.

Two rules. What this process's environment holds under the name of a secret is taken out wherever it stands, also as
JSON or a URL would spell it. And what looks like a credential by itself is taken out whoever put it there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_origin
from urllib.parse import quote

from pydantic import BaseModel

REDACTED = "[redacted]"
SECRET_NAME = re.compile(
    r"(?i)(?:^|_)(?:SECRET|TOKEN|PASSWORD|PASSWD|KEY|APIKEY|CREDENTIALS?|AUTH_STRING)$"
    r"|(?:^|_)SECRET_|(?:^|_)API_?KEY"
)
"""Names of variables whose values are secrets. AWS_ACCESS_KEY_ID is none: it names an account."""
_NO_SECRET = re.compile(r"(?i)_(?:FILE|PATH|URL|URI|ENV)$")
_LEAST_CHARACTERS = 8
"""A shorter value is left: as a part of words it would make texts unreadable, and as a secret it is none."""
_PATTERNS = re.compile(
    r"(?P<before>://)[^\s/@\"'\\]*:[^\s/@\"'\\]+(?=@)"
    r"|(?P<query>(?i:X-Amz-(?:Signature|Security-Token|Credential)|[?&](?:Signature|sig))=)[^\s&\"'\\]+"
    r"|(?P<header>(?i:Authorization\W{1,4}Basic |Bearer ))[A-Za-z0-9._~+/-]{16,}=*"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|\b(?:hf_|pn[ub]_)[A-Za-z0-9]{20,}"
    r"|\bsk-[A-Za-z0-9_-]{20,}"
)
"""User and password in a URL, signatures of presigned URLs, headers, and keys of AWS, Hugging Face, Prefect, OpenAI."""


_ADDRESSES = {
    "key", "digest", "sha256", "path", "name", "directory", "stage", "label", "shard", "covers", "inputs", "write_id",
}  # fmt: skip
"""Fields of records that say where something stands; one that was changed would lose it."""


def redact(text: str) -> str:
    """The text without credentials."""
    return _redact(text, _values(tuple(secrets_of(os.environ))))


def redact_record(record: BaseModel) -> dict[str, Any]:
    """A record as a JSON object without credentials: its texts, but no number, no fixed word and no address.

    A secret that happens to be "progress" or 20240917 may hide a sentence, but never makes a record unreadable.
    """
    fixed = {
        name
        for name, field in type(record).model_fields.items()
        if name in _ADDRESSES or get_origin(field.annotation) is Literal
    }
    return {
        name: value if name in fixed else _without_credentials(getattr(record, name, None), value)
        for name, value in record.model_dump(mode="json").items()
    }


def _without_credentials(field: Any, value: Any) -> Any:
    """`value` is what `field` is in JSON."""
    if isinstance(field, BaseModel):
        return redact_record(field)
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        fields = field if isinstance(field, Mapping) else {}
        return {name: _without_credentials(fields.get(name), each) for name, each in value.items()}
    if isinstance(value, list):
        items = field if isinstance(field, list | tuple) else [None] * len(value)
        return [_without_credentials(item, each) for item, each in zip(items, value, strict=True)]
    return value


def redact_file(path: Path) -> None:
    """Takes credentials out of a text file, line by line; one that has none is left as it is."""
    # Once: a scan of the environment for each line takes five minutes of 500,000.
    values = _values(tuple(secrets_of(os.environ)))
    cleaned = path.with_name(f"{path.name}.redacted")
    changed = False
    with (
        path.open(encoding="utf-8", errors="surrogateescape", newline="") as source,
        cleaned.open("w", encoding="utf-8", errors="surrogateescape", newline="") as target,
    ):
        for line in source:
            safe = _redact(line, values)
            changed |= safe != line
            target.write(safe)
    if changed:
        cleaned.replace(path)
    else:
        cleaned.unlink()


def secrets_of(environment: Mapping[str, str]) -> Iterator[str]:
    """The values that are secret by their names; of NAME:PASSWORD also the password alone."""
    for name, padded in environment.items():
        if is_secret_name(name):
            # A file that became a variable ends in a line feed, with which no client sends it.
            value = padded.strip()
            parts = [value, value.partition(":")[2]] if name.upper().endswith("AUTH_STRING") else [value]
            yield from (part for part in parts if len(part) >= _LEAST_CHARACTERS)


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether the value of a variable of this name is a secret."""
    return SECRET_NAME.search(name) is not None and _NO_SECRET.search(name) is None


def find_credential(document: Any, place: Sequence[str] = ()) -> str | None:
    """The dotted place of the first text in a YAML document that holds a credential; None where none does."""
    if isinstance(document, str):
        return ".".join(place) if redact(document) != document else None
    if isinstance(document, Mapping):
        entries = [(str(key), value) for key, value in document.items()]
    elif isinstance(document, list | tuple):
        entries = [(str(number), value) for number, value in enumerate(document)]
    else:
        return None
    return next((found for key, value in entries if (found := find_credential(value, (*place, key))) is not None), None)


def _redact(text: str, values: re.Pattern[str] | None) -> str:
    if values is not None:
        text = values.sub(REDACTED, text)
    return _PATTERNS.sub(_replaced, text)


def _replaced(match: re.Match[str]) -> str:
    return f"{match['before'] or match['query'] or match['header'] or ''}{REDACTED}"


@lru_cache(maxsize=8)
def _values(secrets: tuple[str, ...]) -> re.Pattern[str] | None:
    if not secrets:
        return None
    spelled = {way for value in secrets for way in (value, json.dumps(value)[1:-1], quote(value, safe=""))}
    # The longest first: one secret may begin another.
    return re.compile("|".join(re.escape(way) for way in sorted(spelled, key=lambda way: (-len(way), way))))
