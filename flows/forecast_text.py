"""What a training learns from and is judged on, before and after its stores are there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from flows.model_sizes import Sizes
from tasks.distill.stage import DistillRecipe
from tasks.planning.text import Documents
from tasks.runtime.declare import Step
from tasks.sft.stage import ReplayingSftRecipe
from tasks.training.settings import TrainingRecipe


@dataclass(frozen=True)
class TrainingText:
    """All stores of a training."""

    stores: tuple[tuple[float, Documents], ...]
    """The part of the training rows that comes from each store, and the store's training split."""
    heldout: Documents
    longest: float
    """Tokens of the longest document, at most."""
    epoch_rows: int | None = None
    """Rows of an epoch, if not all of the stores: `replay` comes on top of the instructions."""

    @property
    def rows(self) -> int:
        """An epoch: all rows of the stores that are drawn from, unless something else counts it."""
        if self.epoch_rows is not None:
            return self.epoch_rows
        return int(sum(documents.rows for share, documents in self.stores if share))

    def learnt(self, rows: float) -> Documents:
        """So many rows, drawn from the stores by their parts."""
        parts = [documents.scaled(rows * share / documents.rows) for share, documents in self._drawn()]
        return sum(parts, Documents())

    def deviation(self, spread: float) -> float:
        """Standard deviation of a row's tokens. `spread`: within a store, mean square of them over squared mean."""
        drawn = self._drawn()
        mean = sum(share * documents.length for share, documents in drawn)
        square = sum(share * spread * documents.length**2 for share, documents in drawn)
        return math.sqrt(max(0.0, square - mean**2))

    def _drawn(self) -> list[tuple[float, Documents]]:
        return [(share, documents) for share, documents in self.stores if share and documents.rows]


def training_text(step: Step, sizes: Sizes) -> TrainingText:
    """Of a step distill or sft; the recipe's mixture weighs its stores."""
    recipe = step.config.recipe
    assert isinstance(recipe, TrainingRecipe)
    mixture = (recipe.mixture or {}) if isinstance(recipe, DistillRecipe) else {}
    if isinstance(recipe, ReplayingSftRecipe):
        mixture = {"corpus": 1 - recipe.replay.weight, "replay": recipe.replay.weight}
    found = {}
    for role, source in step.inputs.items():
        if role not in ("corpus", "logits", "replay") and not role.startswith("logits."):
            continue
        corpus = source if source.stage.name == "corpus" else source.inputs.get("corpus")
        found[role] = sizes.corpus(corpus) if corpus is not None else sizes.imported(source)
    epoch = None
    if isinstance(recipe, ReplayingSftRecipe):
        epoch = recipe.replay.rows_of_epoch(found["corpus"].train.rows)
    weights = _shares({role: mixture.get(role.removeprefix("logits."), 1.0) for role in found})
    return TrainingText(
        stores=tuple((weights[role], size.train) for role, size in found.items()),
        # What is replayed is not judged.
        heldout=sum(
            (size.heldout.first(recipe.max_heldout_rows) for role, size in found.items() if role != "replay"),
            Documents(),
        ),
        longest=max((size.longest for size in found.values()), default=1.0),
        epoch_rows=epoch,
    )


def _shares(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {role: weight / total for role, weight in weights.items()}
