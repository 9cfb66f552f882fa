"""Before a teacher runs it is known whether the corpora leave something to choose on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from flows.dag import build
from flows.left_to_choose_on import corpora_of_choice, require_choice
from flows.profiles import load_profile
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import sha256_hex
from tasks.artifacts.manifest import Manifest, ObjectRecord, Provenance, digest_of
from tasks.artifacts.store import Store
from tasks.logits.heldout import HELDOUT_FILE
from tasks.logits.rows import Row, row_id_of, write_rows
from tasks.runtime.declare import Step
from tasks.runtime.execute import RunContext
from tests.golden.keys import constant_content

SAMPLING = "{model: w, temperature: 0, max_tokens: 9}"
AUTOEVOL = (
    "fine_tuning.evolve.recipe.source={kind: autoevol, seeds: {origin: inline, instructions: [a, b]}, method_rounds: 0,"
    f"evolver: {SAMPLING}, optimiser: {SAMPLING}, answerer: {SAMPLING}}}"
)
ENDPOINT = "fine_tuning.evolve.runtime={endpoint: {base_url: 'http://a/v1'}}"


@pytest.fixture(autouse=True, scope="module")
def _content() -> Iterator[None]:
    with constant_content():
        yield


@pytest.fixture
def context(store: Store, tmp_path: Path) -> RunContext:
    return RunContext(store=store, scratch=tmp_path / "scratch")


@pytest.fixture
def written(store: Store, tmp_path: Path) -> Callable[[Step, Literal["text", "chat"], int], None]:
    """written(step, kind, count) commits a corpus that holds out so many documents."""

    def commit(step: Step, kind: Literal["text", "chat"], count: int) -> None:
        rows = []
        for index in range(count):
            ids = np.array([1, 2, index + 3], np.int32)
            rows.append(Row(row_id_of(ids), ids, np.ones(3, np.uint8), f"text {index}", 6, kind, "test"))
        file = tmp_path / HELDOUT_FILE
        write_rows(file, rows)
        artifact, path = Artifact(store, step.directory), f"data/main/{HELDOUT_FILE}"
        data = file.read_bytes()
        store.create(artifact.path(path), data)
        objects = (ObjectRecord(name=HELDOUT_FILE, path=path, size=len(data), sha256=sha256_hex(data)),)
        nothing: dict[str, Any] = {"recipe": {}, "inputs": {}, "metrics": {}}
        unknown: dict[str, Any] = {"flow_run": None, "git_sha": None, "git_dirty": None}
        provenance = Provenance(
            write_id="one", created="", seconds=0, attempts=1, hardware={}, versions={}, runtime={}, **unknown
        )
        about: dict[str, Any] = {"stage": "corpus", "version": 2, "label": step.label, "key": step.key}
        artifact.commit(Manifest(digest=digest_of(objects), objects=objects, provenance=provenance, **about, **nothing))

    return commit


def choice_of(*sets: str) -> Step:
    return next(step for step in build(load_profile("micro", sets)) if step.label == "choose")


@pytest.mark.parametrize(
    ("texts", "chats", "message"),
    [
        (5, 9, r"holds out 5 texts, and the first 4 are the evaluation's: 1 are left"),
        (6, 1, r"corpus-sft.* holds out 1 conversations to choose on"),
        (6, 2, None),
    ],
)
def test_too_little_to_choose_on_is_told(
    written: Callable[..., None], context: RunContext, texts: int, chats: int, message: str | None
) -> None:
    choice = choice_of()
    read, instructions = corpora_of_choice(choice)
    assert (read.label, instructions.label) == ("corpus-llama", "corpus-sft")
    written(read, "text", texts)
    written(instructions, "chat", chats)
    if message is None:
        require_choice(choice, context)
    else:
        with pytest.raises(BadInputError, match=message):
            require_choice(choice, context)


def test_teachers_do_not_wait_for_instructions_that_a_model_evolves() -> None:
    assert [step.label for step in corpora_of_choice(choice_of(AUTOEVOL, ENDPOINT))] == ["corpus-llama"]
