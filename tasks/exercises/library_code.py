"""Python code that every Python installation carries: the functions and classes of its standard library.

Without docstrings, which are `library_text`'s; with comments and white space as they are, since white space is what
tokenizers differ in. Another Python version has other code, so whoever uses it in a recipe states the content hash.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tasks.exercises.library_text import documented_nodes, module_files

MIN_CODE_BYTES = 200
"""Shorter functions are mostly one return."""


@functools.cache
def library_code(max_bytes: int) -> tuple[str, ...]:
    """Different top-level functions and classes in an order fixed by the hash of their modules' paths, until
    `max_bytes` are reached; read once a process.
    """
    modules = sorted(
        module_files(Path(sysconfig.get_path("stdlib"))),
        key=lambda module: hashlib.sha256(module[0].encode()).digest(),
    )
    documents: dict[str, None] = {}
    num_bytes = 0
    for _, path in modules:
        for text in _definitions(path):
            size = len(text.encode())
            if size < MIN_CODE_BYTES or text in documents:
                continue
            if num_bytes + size > max_bytes:
                return tuple(documents)
            documents[text] = None
            num_bytes += size
    return tuple(documents)


def _definitions(path: Path) -> Iterator[str]:
    try:
        content = path.read_text(encoding="utf-8")
        tree = ast.parse(content)
    except (SyntaxError, UnicodeDecodeError):
        return
    lines: list[str | None] = [*content.splitlines()]
    for node in documented_nodes(tree):
        if ast.get_docstring(node, clean=False) is not None:
            statement = node.body[0]
            assert statement.end_lineno is not None
            # A body of a docstring alone needs another statement.
            stands = [] if len(node.body) > 1 else [" " * statement.col_offset + "..."]
            removed = statement.end_lineno - statement.lineno + 1
            # None keeps the numbers of the lines below.
            lines[statement.lineno - 1 : statement.end_lineno] = [*stands, *[None] * (removed - len(stands))]
    for statement in tree.body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            assert statement.end_lineno is not None
            kept = [line for line in lines[statement.lineno - 1 : statement.end_lineno] if line is not None]
            yield "\n".join(kept) + "\n"
