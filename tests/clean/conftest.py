"""Planted conversations, and a mirror of an evaluation set in the layout of its repository on the hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts.artifact import Artifact
from tests.committed import metrics_of, objects_of

RunStage = Callable[..., Artifact]
Line = dict[str, Any]

QUESTION = "Which muscle of the larynx tilts the thyroid cartilage forward and so raises the pitch of a speaking voice"
SHORT_QUESTION = "Which bone of the middle ear is smallest"
CHOICES = ["The cricothyroid muscle", "The vocalis", "The posterior cricoarytenoid", "The masseter"]


@pytest.fixture(autouse=True)
def _environment(own_environment: None) -> None:
    """As the workers of these tests are this process."""


@pytest.fixture
def said() -> Callable[..., Line]:
    """said(id, question, answer, …): a line of instructions.jsonl."""

    def line(row_id: str, *turns: str, system: str | None = None) -> Line:
        roles = ["user", "assistant"] * len(turns)
        messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]
        first = [{"role": "system", "content": system}] if system is not None else []
        return {"id": row_id, "messages": first + messages, "lineage": {"source": "planted"}}

    return line


@pytest.fixture
def clean(run_stage: RunStage, tmp_path: Path) -> Callable[..., dict[str, bytes]]:
    """clean(lines, recipe={}, runtime={}) runs the stage: the bytes of what it made by name. Lines may be bytes."""
    number = iter(range(1000))

    def run(
        lines: Sequence[Line] | bytes, recipe: dict[str, Any] | None = None, runtime: dict[str, Any] | None = None
    ) -> dict[str, bytes]:
        source = tmp_path / f"evolved-{next(number)}"
        source.mkdir()
        data = lines if isinstance(lines, bytes) else b"".join(encoded(line) for line in lines)
        (source / "instructions.jsonl").write_bytes(data)
        artifact = run_stage("clean", recipe or {}, {"instructions": source}, runtime)
        return {**objects_of(artifact), "metrics": json.dumps(metrics_of(artifact)).encode()}

    return run


def encoded(line: Line) -> bytes:
    """As evolve writes it."""
    return (json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n").encode()


@pytest.fixture(scope="session")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cais/mmlu with the subject anatomy of two questions, as the repository on the hub is laid out."""
    folder = tmp_path_factory.mktemp("mirror")
    repository = folder / "cais" / "mmlu"
    (repository / "anatomy").mkdir(parents=True)
    rows = [
        {"question": QUESTION, "subject": "anatomy", "choices": CHOICES, "answer": 0},
        {"question": SHORT_QUESTION, "subject": "anatomy", "choices": ["Malleus", "Incus", "Stapes", "Ulna"]},
    ]
    rows[1]["answer"] = 2
    for split in ("test", "dev"):
        text = "".join(json.dumps(row) + "\n" for row in (rows if split == "test" else rows[1:]))
        (repository / "anatomy" / f"{split}.jsonl").write_text(text)
    configurations = "".join(f"  - split: {split}\n    path: anatomy/{split}.jsonl\n" for split in ("test", "dev"))
    (repository / "README.md").write_text(
        f"---\nconfigs:\n- config_name: anatomy\n  data_files:\n{configurations}---\n# MMLU\n"
    )
    return folder
