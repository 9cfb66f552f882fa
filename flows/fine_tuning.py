"""The part of a profile about the last training: what it learns, what it reads again, and whether it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from flows.conversation_sets import conversation_sets
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.frozen import Frozen
from tasks.benchmarks.declare import ExerciseTasks
from tasks.choose.stage import ChooseConfig
from tasks.clean.stage import CleanConfig
from tasks.corpus.stage import CorpusConfig, CorpusRecipe
from tasks.evaluate.stage import EvaluateRecipe
from tasks.evolve.stage import EvolveConfig
from tasks.sft.stage import ReplayingSftRecipe, SftConfig


class ReplaySource(Frozen):
    """What the fine-tuning reads again of a branch: its recipe's `replay` says how much."""

    branch: str
    rows: Literal["logits", "corpus"] = "logits"
    """Of imported logits it is not known which conversations they were made on."""


class FineTuning(Frozen):
    """The last training: on evolved instructions."""

    evolve: EvolveConfig
    clean: CleanConfig | None = CleanConfig()
    """None trains on the instructions as they are."""
    corpus: CorpusConfig
    sft: SftConfig
    replay: ReplaySource | None = None
    choose: ChooseConfig | None = ChooseConfig()
    """Whether the fusion or the fine-tuned model goes on; None: the fine-tuned one, which nobody compared."""

    @property
    def training(self) -> SftConfig:
        """`sft`. Where a choice follows, only a gate that was written ends the run: a model that became worse is a
        candidate, and loses there."""
        gates = self.sft.gates
        if self.choose is None or "heldout_ce_must_not_rise" in gates.model_fields_set:
            return self.sft
        return self.sft.model_copy(update={"gates": gates.model_copy(update={"heldout_ce_must_not_rise": None})})


def replay_fault(tuning: FineTuning, surgery: Mapping[str, bool], read: Mapping[str, CorpusRecipe]) -> str | None:
    """Why a branch cannot be replayed, in one sentence; None if nothing is, or it can.

    Args:
        surgery: of each branch, whether its store is in another vocabulary than the student's.
        read: each branch's corpus.
    """
    if (tuning.replay is not None) != isinstance(tuning.sft.recipe, ReplayingSftRecipe):
        return (
            "fine_tuning.replay, which names the branch, and fine_tuning.sft.recipe.replay, which weighs it, go "
            "together; give both or neither"
        )
    if tuning.replay is None:
        return None
    name = tuning.replay.branch
    if surgery.get(name) is not False:
        own = ", ".join(branch for branch, changed in surgery.items() if not changed) or "none"
        why = "is in its teacher's vocabulary, which the fusion does not have" if name in surgery else "is no branch"
        return f"fine_tuning.replay.branch is {name!r}, which {why}; name a branch without surgery: {own}"
    if (other := _other_split(tuning.corpus.recipe, read[name])) is None:
        return None
    return (
        f"fine_tuning.replay reads rows of the branch {name}, and fine_tuning.corpus.recipe has another split than it "
        f"{other}, so that conversations which the fine-tuning holds out would be trained on; take the branch's seed "
        f"and at most its fraction"
    )


def _other_split(mine: CorpusRecipe, theirs: CorpusRecipe) -> str | None:
    """The two splits, if `theirs` may train on what `mine` holds out."""
    # A document is held out by its hash, which is below the larger fraction whenever it is below the smaller one.
    if mine.seed == theirs.seed and mine.heldout_fraction <= theirs.heldout_fraction:
        return None
    return (
        f"(seed {mine.seed}, heldout_fraction {mine.heldout_fraction:g}, against {theirs.seed} and "
        f"{theirs.heldout_fraction:g})"
    )


def choice_fault(tuning: FineTuning, evaluated: EvaluateRecipe, read: Mapping[str, CorpusRecipe]) -> str | None:
    """Why a choice would be made on what is reported or was learnt, in one sentence; None if it is not.

    Args:
        read: each corpus that models before the fusion learn from, by its place in the profile.
    """
    if tuning.choose is None:
        return None
    mine = conversation_sets(tuning.corpus.recipe, tuning.evolve.recipe)
    for where, recipe in read.items():
        shared = sorted(mine & conversation_sets(recipe, tuning.evolve.recipe))
        if shared and (other := _other_split(tuning.corpus.recipe, recipe)) is not None:
            return (
                f"fine_tuning.choose reads conversations of {shared[0]} that fine_tuning.corpus.recipe holds out, and "
                f"{where}.recipe reads that set with another split {other}, so that the candidates may have learnt "
                f"them; take its seed and at most its fraction"
            )
    if (fault := _texts_fault(evaluated)) is not None:
        return f"{fault}, or fine_tuning.choose to null"
    splits = {task.split for task in evaluated.tasks if isinstance(task, ExerciseTasks)}
    if (exercises := tuning.choose.recipe.exercises) is not None and exercises.split in splits:
        return (
            "assessment.evaluate.recipe.tasks has exercises of the split dev, on which fine_tuning.choose chooses; "
            "evaluate on the split test"
        )
    return None


def _texts_fault(evaluated: EvaluateRecipe) -> str | None:
    """Why there is no text to choose on beside an evaluation's; None if there may be some."""
    if not evaluated.reads_texts or evaluated.max_documents is not None:
        return None
    return (
        "assessment.evaluate.recipe.max_documents is not set, so that the evaluation reads every held-out text and "
        "none is left to choose on; set it to a part of them"
    )


def documents_of(evaluated: EvaluateRecipe) -> int:
    """How many held-out texts, from the first on, are the evaluation's.

    Raises:
        BadInputError: all of them are.
    """
    if (fault := _texts_fault(evaluated)) is not None:
        raise BadInputError(fault)
    return evaluated.skip_documents + (evaluated.max_documents or 0) if evaluated.reads_texts else 0
