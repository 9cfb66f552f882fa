"""Before a teacher runs it is known whether the corpora leave something to choose on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flows.dag import build
from flows.left_to_choose_on import corpora_of_choice, require_choice, require_texts
from flows.profiles import load_profile
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import sha256_hex
from tasks.artifacts.manifest import Manifest, ObjectRecord, Provenance, digest_of
from tasks.artifacts.store import Store
from tasks.evaluate.stage import EvaluateRecipe
from tasks.logits.enough_to_choose import HELDOUT_CONVERSATIONS, HELDOUT_TEXTS
from tasks.runtime.declare import Step
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
def written(store: Store) -> Callable[..., None]:
    """written(step, **metrics) commits a corpus of which the manifest counts so much."""

    def commit(step: Step, **metrics: int) -> None:
        artifact, path, data = Artifact(store, step.directory), "data/main/corpus.json", b"{}"
        store.create(artifact.path(path), data)
        objects = (ObjectRecord(name="corpus.json", path=path, size=len(data), sha256=sha256_hex(data)),)
        nothing: dict[str, Any] = {"recipe": {}, "inputs": {}}
        unknown: dict[str, Any] = {"flow_run": None, "git_sha": None, "git_dirty": None}
        provenance = Provenance(
            write_id="one", created="", seconds=0, attempts=1, hardware={}, versions={}, runtime={}, **unknown
        )
        about: dict[str, Any] = {"stage": "corpus", "version": 2, "label": step.label, "key": step.key}
        artifact.commit(
            Manifest(
                digest=digest_of(objects), objects=objects, provenance=provenance, metrics=metrics, **about, **nothing
            )
        )

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
    written: Callable[..., None], store: Store, texts: int, chats: int, message: str | None
) -> None:
    choice = choice_of()
    read, instructions = corpora_of_choice(choice)
    assert (read.label, instructions.label) == ("corpus-llama", "corpus-sft")
    written(read, **{HELDOUT_TEXTS: texts})
    written(instructions, **{HELDOUT_CONVERSATIONS: chats})
    if message is None:
        require_choice(choice, store)
    else:
        with pytest.raises(BadInputError, match=message):
            require_choice(choice, store)


@pytest.mark.parametrize("cloze", [True, False])
def test_cloze_items_need_texts_too(written: Callable[..., None], store: Store, cloze: bool) -> None:
    tasks = ["assessment.evaluate.recipe.tasks=[{type: cloze, items: 40}]", "assessment.evaluate.gates.min_items=null"]
    profile = load_profile("micro", [*(tasks if cloze else []), "assessment.evaluate.recipe.bits_per_byte=false"])
    evaluation = next(step for step in build(profile) if step.label == "evaluate")
    recipe = evaluation.config.recipe
    assert isinstance(recipe, EvaluateRecipe)
    written(evaluation.inputs["corpus"], **{HELDOUT_TEXTS: 1})
    if cloze:
        with pytest.raises(BadInputError, match="1 are left to choose on"):
            require_texts(evaluation.inputs["corpus"], recipe, store)
    else:
        require_texts(evaluation.inputs["corpus"], recipe, store)


def test_a_corpus_that_was_never_counted_is_the_workers_to_judge(written: Callable[..., None], store: Store) -> None:
    choice = choice_of()
    for corpus in corpora_of_choice(choice):
        written(corpus, heldout_rows=1)
    require_choice(choice, store)


def test_teachers_do_not_wait_for_instructions_that_a_model_evolves() -> None:
    assert [step.label for step in corpora_of_choice(choice_of(AUTOEVOL, ENDPOINT))] == ["corpus-llama"]
