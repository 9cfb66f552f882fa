"""The standard library's code as text."""

from __future__ import annotations

import ast

from tasks.exercises.library_code import MIN_CODE_BYTES, library_code
from tasks.exercises.library_text import library_documents

MAX_BYTES = 300_000


def test_every_document_is_one_definition_without_docstrings() -> None:
    documents = library_code(MAX_BYTES)
    assert len(set(documents)) == len(documents) > 50
    for text in documents:
        (node,) = ast.parse(text).body
        assert isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node):
            if isinstance(inner, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                assert ast.get_docstring(inner) is None
        assert len(text.encode()) >= MIN_CODE_BYTES


def test_comments_and_white_space_stay() -> None:
    documents = library_code(MAX_BYTES)
    assert any("    # " in text for text in documents)
    assert any(text != ast.unparse(ast.parse(text)) + "\n" for text in documents)


def test_the_order_is_fixed_and_the_bytes_are_bounded() -> None:
    documents = library_code(MAX_BYTES)
    assert documents == library_code(MAX_BYTES)
    assert 0.9 * MAX_BYTES < sum(len(text.encode()) for text in documents) <= MAX_BYTES
    assert library_code(MAX_BYTES // 2) == documents[: len(library_code(MAX_BYTES // 2))]


def test_it_shares_no_text_with_the_documentation() -> None:
    assert not set(library_code(MAX_BYTES)) & set(library_documents(MAX_BYTES))
