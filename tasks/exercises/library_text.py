"""English prose that every Python installation carries: the language reference's topics and all docstrings.

Modules are parsed and never imported, as some of them act on import. About 2 MB in all; another Python version has
other text, so whoever uses it in a recipe states the content hash.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import os
import sysconfig
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from tasks.artifacts.fingerprint import canonical_json, sha256_hex

MIN_DOCSTRING_BYTES = 200
"""Shorter docstrings are mostly "Return self+value." and teach nothing."""
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3", "pydoc_data"}
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")
"""The fields of a node that hold statements, in the order in which every kind of node has them."""


def _topic_documents() -> Iterator[tuple[str, str]]:
    from pydoc_data.topics import topics

    for name, text in topics.items():
        yield f"topic/{name}", text


def module_files(root: Path) -> Iterator[tuple[str, Path]]:
    """Names and paths of the modules below `root` that are neither tests nor installed packages."""
    for folder, folders, files in os.walk(root):
        # Installed packages have 20 times the library's files: they are not even listed.
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        relative = Path(folder).relative_to(root)
        for name in files:
            if name.endswith(".py"):
                yield f"module/{(relative / name).as_posix()}", Path(folder, name)


def documented_nodes(tree: ast.Module) -> Iterator[Documented]:
    """The module and all classes and functions in it, in the order of `ast.walk`.

    That would also visit the expressions, nine nodes in ten, in which none can be: 3 times slower over the library.
    """
    nodes: deque[ast.AST] = deque([tree])
    while nodes:
        node = nodes.popleft()
        nodes.extend(child for field in _BLOCKS for child in getattr(node, field, ()))
        if isinstance(node, Documented):
            yield node


@functools.cache
def _docstrings(path: Path) -> tuple[str, ...]:
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:
        return ()
    return tuple(text for node in documented_nodes(tree) if (text := ast.get_docstring(node, clean=False)))


@functools.cache
def library_documents(max_bytes: int | None = None, only: str = "") -> tuple[str, ...]:
    """Different documents in an order fixed by the hash of where they come from, until `max_bytes` are reached.

    `only` is "topic" for the reference's topics, "module" for docstrings, or empty for both. A profile names the same
    text in many places and reading all of it takes 5 seconds, so that a process reads it once.
    """
    sources: list[tuple[str, str | Path]] = []
    if only in ("", "topic"):
        sources += _topic_documents()
    if only in ("", "module"):
        sources += module_files(Path(sysconfig.get_path("stdlib")))
    sources.sort(key=lambda source: hashlib.sha256(source[0].encode()).digest())
    documents: dict[str, None] = {}
    num_bytes = 0
    for _, source in sources:
        for raw in _docstrings(source) if isinstance(source, Path) else (source,):
            text = inspect.cleandoc(raw).strip()
            size = len(text.encode("utf-8", "replace"))
            if size < MIN_DOCSTRING_BYTES or text in documents:
                continue
            if max_bytes is not None and num_bytes + size > max_bytes:
                return tuple(documents)
            documents[text] = None
            num_bytes += size
    return tuple(documents)


def documents_sha256(documents: Sequence[str]) -> str:
    """Identity of a list of documents."""
    return sha256_hex(canonical_json(documents))
