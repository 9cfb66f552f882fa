"""Which sets of conversations a corpus reads: two corpora of one set may hold out different parts of it."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

from tasks.corpus.stage import CorpusRecipe, ExercisesSource, FilesSource, HubSource, InstructionsSource
from tasks.evolve.row_sources import FileRows, HubRows
from tasks.evolve.stage import AutoEvolSource, EvolveRecipe
from tasks.evolve.stage import ExercisesSource as EvolvedExercises


def conversation_sets(corpus: CorpusRecipe, instructions: EvolveRecipe) -> frozenset[str]:
    """The sets by name, whatever part of them is read.

    `instructions` is what a source of that kind reads. Texts do not count, and nothing that a model evolved is of the
    set that its seeds are of.
    """
    found: set[str] = set()
    for source in corpus.sources:
        match source:
            case HubSource() if source.messages_field is not None:
                found.add(f"hub/{source.dataset}")
            case FilesSource() if source.messages_field is not None:
                found |= _files(source.paths)
            case ExercisesSource():
                found |= _exercises(source.kinds)
            case InstructionsSource():
                found |= _instructions(instructions)
    return frozenset(found)


def _instructions(recipe: EvolveRecipe) -> set[str]:
    source = recipe.source
    if isinstance(source, EvolvedExercises):
        return _exercises(source.kinds)
    if isinstance(source, AutoEvolSource):
        return set()
    rows = source.rows
    if isinstance(rows, HubRows):
        return {f"hub/{rows.dataset}"}
    return _files([rows.path]) if isinstance(rows, FileRows) else {f"package/{rows.path}"}


def _exercises(kinds: Iterable[str]) -> set[str]:
    # Whatever their seed: of the short ones there are few, and two draws share some.
    return {f"exercises/{kind}" for kind in kinds}


def _files(patterns: Iterable[str]) -> set[str]:
    paths = (str(Path(pattern).expanduser()) for pattern in patterns)
    # A file that is not there is told when it is read.
    return {str(Path(file).resolve()) for path in paths for file in glob.glob(path, recursive=True) or [path]}
