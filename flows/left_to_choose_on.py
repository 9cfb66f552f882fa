"""Whether a corpus leaves enough to choose on, known as soon as it is written and before anything is trained."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.artifacts.artifact import Artifact
from tasks.choose.stage import ChooseRecipe
from tasks.compare.stage import CompareRecipe
from tasks.evaluate.stage import EvaluateRecipe
from tasks.evolve.stage import AutoEvolSource, EvolveRecipe
from tasks.runtime.declare import Step
from tasks.runtime.execute import RunContext


def corpora_of_choice(choice: Step) -> list[Step]:
    """The corpora that a step `choose` reads and that are written within minutes.

    Instructions that a model evolves are left out: the teachers do not wait for them.
    """
    texts, instructions = choice.inputs["corpus"], choice.inputs["instructions"]
    return [texts] if _evolves(instructions) else [texts, instructions]


def require_choice(choice: Step, context: RunContext) -> None:
    """To be called once `corpora_of_choice` are written. Raises BadInputError where there is nothing to choose on."""
    from tasks.logits.heldout import conversations_to_choose_on
    from tasks.logits.rows import read_rows

    recipe = choice.config.recipe
    assert isinstance(recipe, ChooseRecipe)
    texts, *others = corpora_of_choice(choice)
    require_texts(texts, recipe, context)
    for instructions in others:
        with _heldout_file(instructions, context) as (file, uri):
            conversations_to_choose_on(read_rows(file), recipe.max_conversations, uri)


def require_texts(corpus: Step, recipe: ChooseRecipe | CompareRecipe | EvaluateRecipe, context: RunContext) -> None:
    """Raises BadInputError where the evaluation takes all held-out texts, or all but one."""
    from tasks.logits.heldout import texts_to_choose_on

    if isinstance(recipe, EvaluateRecipe) and not recipe.bits_per_byte:
        return
    with _heldout_file(corpus, context) as (file, uri):
        texts_to_choose_on(file, recipe.skip_documents, recipe.max_documents, uri)


@contextmanager
def _heldout_file(corpus: Step, context: RunContext) -> Iterator[tuple[Path, str]]:
    from tasks.logits.heldout import HELDOUT_FILE

    artifact = Artifact(context.store, corpus.directory)
    manifest = artifact.manifest()
    entry = manifest.object(HELDOUT_FILE) if manifest is not None else None
    assert entry is not None, "the step has ended"
    context.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=context.scratch) as folder:
        file = Path(folder) / HELDOUT_FILE
        file.write_bytes(context.store.get(artifact.path(entry.path)))
        yield file, artifact.uri


def _evolves(step: Step) -> bool:
    recipe = step.config.recipe
    own = isinstance(recipe, EvolveRecipe) and isinstance(recipe.source, AutoEvolSource)
    return own or any(_evolves(source) for source in step.inputs.values())
