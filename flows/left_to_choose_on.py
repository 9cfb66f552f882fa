"""Whether a corpus leaves enough to choose on, known as soon as it is written and before anything is trained.

Read are the counts in its manifest. A corpus whose manifest has none was written before they were counted: then the
worker that chooses tells it.
"""

from __future__ import annotations

from typing import Any

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.store import Store
from tasks.choose.stage import ChooseRecipe
from tasks.compare.stage import CompareRecipe
from tasks.evaluate.stage import EvaluateRecipe
from tasks.evolve.stage import AutoEvolSource, EvolveRecipe
from tasks.logits import enough_to_choose as enough
from tasks.runtime.declare import Step


def corpora_of_choice(choice: Step) -> list[Step]:
    """The corpora that a step `choose` reads and that are written within minutes.

    Instructions that a model evolves are left out: the teachers do not wait for them.
    """
    texts, instructions = choice.inputs["corpus"], choice.inputs["instructions"]
    return [texts] if _evolves(instructions) else [texts, instructions]


def require_choice(choice: Step, store: Store) -> None:
    """To be called once `corpora_of_choice` are written. Raises BadInputError where there is nothing to choose on."""
    recipe = choice.config.recipe
    assert isinstance(recipe, ChooseRecipe)
    texts, *others = corpora_of_choice(choice)
    require_texts(texts, recipe, store)
    for instructions in others:
        conversations, where = _counted(instructions, enough.HELDOUT_CONVERSATIONS, store)
        if conversations is not None:
            enough.require_conversations(conversations, where)


def require_texts(corpus: Step, recipe: ChooseRecipe | CompareRecipe | EvaluateRecipe, store: Store) -> None:
    """Raises BadInputError where the evaluation takes all held-out texts, or all but one."""
    if isinstance(recipe, EvaluateRecipe) and not recipe.reads_texts:
        return
    texts, where = _counted(corpus, enough.HELDOUT_TEXTS, store)
    if texts is not None:
        enough.require_texts(texts, recipe.skip_documents, recipe.max_documents, where)


def _counted(corpus: Step, metric: str, store: Store) -> tuple[int | None, str]:
    artifact = Artifact(store, corpus.directory)
    manifest = artifact.manifest()
    assert manifest is not None, "the step has ended"
    found: Any = manifest.metrics.get(metric)
    return (found if isinstance(found, int) else None), artifact.uri


def _evolves(step: Step) -> bool:
    recipe = step.config.recipe
    own = isinstance(recipe, EvolveRecipe) and isinstance(recipe.source, AutoEvolSource)
    return own or any(_evolves(source) for source in step.inputs.values())
