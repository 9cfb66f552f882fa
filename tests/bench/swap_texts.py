"""Text of four kinds for the change of vocabulary: what a warm-up trains on, and apart from it what is measured.

Beside the fixed texts of tasks/modeling/bits_per_byte.py, which are only measured: Python's documentation, the standard
library's code without its docstrings, generated tables of numbers, and what lm-eval's tasks have in Korean, Russian and
Arabic, of which mostly the first. A document is measured or trained on, by its hash.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import random
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path

from tasks.modeling.bits_per_byte import TEXTS
from tests.bench.quality_documents import split_documents
from tests.bench.rows_surgery import KINDS
from tests.bench.swap_folder import folder, write_once

MEASURED_BYTES = 2500
"""Of each kind, with the fixed texts."""
TRAINED_BYTES = 40_000
"""Of each kind."""
DOCUMENT_BYTES = 600
"""About where a document is cut, so that a kind is of many sources."""
_NON_LATIN = re.compile(r"[^\x00-\u036f]")
_LM_EVAL_FILES = {
    "korean": ("kmmlu/cot_hard/*.yaml",),
    "russian": ("nerel-bench/*.yaml", "nerel-bench/*.py"),
    "arabic": ("arab_culture/*.py", "arab_culture_completion/*.py"),
}


@dataclass(frozen=True)
class KindText:
    """A measured text; `document` names it, as `document_bits` wants."""

    document: str
    text: str


@lru_cache(maxsize=1)
def measured_texts() -> dict[str, tuple[KindText, ...]]:
    """The texts that bits per byte are measured on, by kind."""
    found = {}
    for kind in KINDS:
        own = _up_to(MEASURED_BYTES, chain(TEXTS[kind], _documents(kind, measured=True)))
        found[kind] = tuple(KindText(f"{kind}-{number}", text) for number, text in enumerate(own))
    return found


def training_file(kinds: tuple[str, ...]) -> Path:
    """A JSON Lines file with the field "text", the documents of these kinds in turns; made on the first call."""
    file = folder() / "documents" / f"{'-'.join(kinds)}.jsonl"
    if not file.is_file():
        texts = [_up_to(TRAINED_BYTES, _documents(kind, measured=False)) for kind in kinds]
        turns = [own[at] for at in range(max(map(len, texts))) for own in texts if at < len(own)]
        write_once(file, "".join(json.dumps({"text": text}) + "\n" for text in turns))
    return file


def _documents(kind: str, *, measured: bool) -> Iterator[str]:
    if kind == "prose":
        # This split keeps documents apart that share a sentence.
        yield from map(_cut, split_documents()["test" if measured else "training"])
    elif kind == "digits":
        numbers = random.Random(f"numbers {measured}")
        while True:
            yield _table(numbers)
    else:
        every = _code() if kind == "code" else _non_latin()
        for text in every:
            if (hashlib.sha256(text.encode()).digest()[0] < 64) is measured:
                yield text


def _table(numbers: random.Random) -> str:
    """Lines of numbers as logs, bills and lists have them; no arithmetic, which the digit gate asks for."""
    lines = []
    for _ in range(6):
        one, two = numbers.randrange(10 ** numbers.randrange(1, 7)), numbers.randrange(10 ** numbers.randrange(1, 5))
        lines += [
            f"{numbers.randrange(1970, 2030)}-{numbers.randrange(1, 13):02}-{numbers.randrange(1, 29):02} {one} {two}",
            f"item {two}: {one / 100:.2f}, {numbers.random():.4f}",
            " ".join(str(two + step * (1 + one % 12)) for step in range(8)),
        ]
    return "\n".join(numbers.sample(lines, 8)) + "\n"


def _code() -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.glob("*.py"), key=lambda path: hashlib.sha256(path.name.encode()).digest()):
        for node in ast.parse(path.read_bytes()).body:
            if isinstance(node, ast.FunctionDef) and node.body:
                if ast.get_docstring(node) is not None:
                    node.body = node.body[1:] or [ast.Pass()]
                text = ast.unparse(node) + "\n"
                if text.isascii() and len(text) > 200:
                    yield _cut(text)


def _non_latin() -> Iterator[str]:
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None
    assert spec.submodule_search_locations
    tasks = Path(next(iter(spec.submodule_search_locations))) / "tasks"
    by_language = [
        [
            piece
            for pattern in patterns
            for file in sorted(tasks.glob(pattern))
            for piece in _pieces(_non_latin_lines(file.read_text(encoding="utf-8")))
        ]
        for patterns in _LM_EVAL_FILES.values()
    ]
    # In turns, while a language has more.
    for at in range(max(map(len, by_language))):
        yield from (pieces[at] for pieces in by_language if at < len(pieces))


def _non_latin_lines(text: str) -> str:
    lines = (line.strip() for line in text.splitlines())
    # Escaped ones are records of a corpus, not sentences.
    return "\n".join(line for line in lines if 2 * len(_NON_LATIN.findall(line)) > len(line) and "\\" not in line)


def _pieces(text: str) -> Iterator[str]:
    piece = ""
    for line in text.splitlines():
        piece += line + "\n"
        if len(piece.encode()) > DOCUMENT_BYTES:
            yield piece
            piece = ""


def _cut(text: str) -> str:
    return text if len(text) <= DOCUMENT_BYTES else text[: text.rfind("\n", 100, DOCUMENT_BYTES) + 1] or text[:500]


def _up_to(num_bytes: int, texts: Iterable[str]) -> list[str]:
    taken: list[str] = []
    size = 0
    for text in texts:
        if size >= num_bytes:
            break
        taken.append(text)
        size += len(text.encode())
    return taken
