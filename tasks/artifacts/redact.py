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
from typing import Any
from urllib.parse import quote

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


def redact(text: str) -> str:
    """The text without credentials."""
    values = _values(tuple(secrets_of(os.environ)))
    if values is not None:
        text = values.sub(REDACTED, text)
    return _PATTERNS.sub(_replaced, text)


def redact_file(path: Path) -> None:
    """Takes credentials out of a text file, line by line; one that has none is left as it is."""
    cleaned = path.with_name(f"{path.name}.redacted")
    changed = False
    with (
        path.open(encoding="utf-8", errors="surrogateescape", newline="") as source,
        cleaned.open("w", encoding="utf-8", errors="surrogateescape", newline="") as target,
    ):
        for line in source:
            safe = redact(line)
            changed |= safe != line
            target.write(safe)
    if changed:
        cleaned.replace(path)
    else:
        cleaned.unlink()


def secrets_of(environment: Mapping[str, str]) -> Iterator[str]:
    """The values that are secret by their names; of NAME:PASSWORD also the password alone."""
    for name, value in environment.items():
        if SECRET_NAME.search(name) and not _NO_SECRET.search(name):
            parts = [value, value.partition(":")[2]] if name.upper().endswith("AUTH_STRING") else [value]
            yield from (part for part in parts if len(part) >= _LEAST_CHARACTERS)


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


def _replaced(match: re.Match[str]) -> str:
    return f"{match['before'] or match['query'] or match['header'] or ''}{REDACTED}"


@lru_cache(maxsize=8)
def _values(secrets: tuple[str, ...]) -> re.Pattern[str] | None:
    if not secrets:
        return None
    spelled = {way for value in secrets for way in (value, json.dumps(value)[1:-1], quote(value, safe=""))}
    # The longest first: one secret may begin another.
    return re.compile("|".join(re.escape(way) for way in sorted(spelled, key=lambda way: (-len(way), way))))
