"""How large each model and each corpus of a run is: measured where it is finished, else from what its config says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flows.model_shapes import shape_before, shape_of
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.manifest import Manifest
from tasks.artifacts.store import Store
from tasks.corpus.stage import (
    CorpusRecipe,
    ExercisesSource,
    FilesSource,
    HubSource,
    StdlibCodeSource,
    StdlibDocsSource,
)
from tasks.evolve.stage import DatasetSource, EvolveRecipe
from tasks.evolve.stage import ExercisesSource as EvolvedExercises
from tasks.import_logits.stage import ImportLogitsRecipe
from tasks.planning.architecture import Architecture
from tasks.planning.assumptions import Assumptions
from tasks.planning.text import Documents, tokens_of_bytes
from tasks.reshape.stage import ReshapeRecipe
from tasks.runtime.declare import Step
from tasks.surgeon.stage import TransplantRecipe

UNKNOWN_VOCABULARY = 128_000
LONGEST_OVER_MEAN = 4.0
"""Of documents of which nobody has said where they are cut."""
PARENTS = {
    "surgeon": ("student", "original"),
    "distill": ("student",),
    "sft": ("model",),
    "fuse": ("base",),
    "choose": ("model.fused",),
}
"""Input whose shape the result of a stage has."""


@dataclass(frozen=True)
class CorpusSize:
    """Of one corpus, or of the documents of imported logits."""

    train: Documents
    heldout: Documents
    longest: float
    """Tokens of the longest document, at most."""

    @property
    def tokens(self) -> float:
        return self.train.tokens + self.heldout.tokens


class Sizes:
    """Looks each model and corpus up once."""

    def __init__(
        self,
        store: Store,
        given: Assumptions,
        tokens: float | None,
        dumped: set[str],
        manifests: Mapping[str, Manifest | None] | None = None,
    ) -> None:
        """
        Args:
            tokens: of the training split of each corpus with a key in `dumped`, whatever its sources hold.
            manifests: what was found of steps that have been looked at, by key; others are looked at here.
        """
        self._store = store
        self._given = given
        self._tokens = tokens
        self._dumped = dumped
        self._models: dict[str, Architecture] = {}
        self._corpora: dict[str, CorpusSize] = {}
        self._manifests = dict(manifests or {})

    def manifest(self, step: Step) -> Manifest | None:
        """Of the finished artifact."""
        if step.key not in self._manifests:
            self._manifests[step.key] = Artifact(self._store, step.directory).manifest()
        return self._manifests[step.key]

    # Models

    def model(self, step: Step) -> Architecture:
        """The shape of the model that `step` makes.

        Raises:
            BadInputError: nobody has said what it is.
        """
        if step.key not in self._models:
            self._models[step.key] = self._architecture(step)
        return self._models[step.key]

    def vocabulary(self, step: Step) -> int:
        """Tokens of the tokenizer of a model, or of one that stands alone; roughly, where only the rows are known."""
        manifest = self.manifest(step)
        if manifest is not None and isinstance(size := manifest.metrics.get("vocab_size"), int):
            return size
        try:
            return self.model(step).rows
        except BadInputError:
            return UNKNOWN_VOCABULARY

    def _architecture(self, step: Step) -> Architecture:
        manifest = self.manifest(step)
        if manifest is not None and (entry := manifest.object("config.json")) is not None:
            path = f"{step.directory}/{entry.path}"
            return shape_of(self._store.get(path), self._store.locate(path), step.label)
        name, recipe = step.stage.name, step.config.recipe
        if name == "models":
            return shape_before(step)
        if name == "reshape" and isinstance(recipe, ReshapeRecipe):
            return _reshaped(self.model(step.inputs["model"]), recipe)
        source = next((step.inputs[role] for role in PARENTS.get(name, ()) if role in step.inputs), None)
        if source is None:
            raise BadInputError(f"{step.label}: the shape of what {name} makes is not known")
        model = self.model(source)
        return model.with_rows(self._rows(step, recipe)) if isinstance(recipe, TransplantRecipe) else model

    def _rows(self, step: Step, recipe: TransplantRecipe) -> int:
        if recipe.rows is not None:
            return recipe.rows
        multiple = recipe.pad_rows_to_multiple_of
        return math.ceil(self.vocabulary(step.inputs["donor"]) / multiple) * multiple

    # Corpora

    def corpus(self, step: Step) -> CorpusSize:
        """How much text `step` makes."""
        if step.key not in self._corpora:
            self._corpora[step.key] = self._corpus(step)
        return self._corpora[step.key]

    def _corpus(self, step: Step) -> CorpusSize:
        manifest = self.manifest(step)
        recipe = step.config.recipe
        assert isinstance(recipe, CorpusRecipe)
        if manifest is not None:
            said = manifest.metrics
            train, heldout = (
                Documents(rows=said[f"{split}_rows"], tokens=said[f"{split}_tokens"], targets=said[f"{split}_targets"])
                for split in ("train", "heldout")
            )
            return CorpusSize(train, heldout, _longest(recipe, train))
        vocabulary = self.vocabulary(step.inputs["tokenizer"])
        total = Documents()
        for source in recipe.sources:
            total += self._documents(source, step, recipe, vocabulary)
        train = total.scaled(1 - recipe.heldout_fraction)
        if self._tokens is not None and step.key in self._dumped and train.tokens:
            total = total.scaled(self._tokens / train.tokens)
            train = train.scaled(self._tokens / train.tokens)
        heldout = total.scaled(recipe.heldout_fraction)
        if recipe.max_rows is not None and train.rows > recipe.max_rows:
            train = train.scaled(recipe.max_rows / train.rows)
        return CorpusSize(train, heldout, _longest(recipe, train))

    def _documents(self, source: Any, step: Step, recipe: CorpusRecipe, vocabulary: int) -> Documents:
        given, longest = self._given, recipe.max_tokens
        text = tokens_of_bytes(given.bytes_per_token * given.tokens_per_text, given.bytes_per_token, vocabulary)
        chat = tokens_of_bytes(given.bytes_per_token * given.tokens_per_chat, given.bytes_per_token, vocabulary)
        exercise = given.tokens_per_exercise
        match source:
            case HubSource():
                if source.text_field is not None:
                    return Documents.of(source.limit, text, given.text_targets, longest)
                return Documents.of(source.limit, min(chat, longest), given.chat_targets, longest)
            case StdlibDocsSource() | StdlibCodeSource():
                tokens = tokens_of_bytes(source.max_bytes, given.bytes_per_token, vocabulary)
                return Documents.of(tokens / (0.8 * longest), 0.8 * longest, given.text_targets, longest)
            case ExercisesSource():
                return Documents.of(len(source.kinds) * source.count, exercise, 0.4, longest)
            case FilesSource():
                return self._files(source, vocabulary, text, longest)
        rows, tokens = self._instructions(step, exercise, chat)
        rows = rows if source.limit is None else min(rows, source.limit)
        return Documents.of(rows, min(tokens, longest), 0.4 if tokens == exercise else given.chat_targets, longest)

    def imported(self, step: Step) -> CorpusSize:
        """The documents of logits that were stored elsewhere."""
        manifest = self.manifest(step)
        if manifest is not None:
            said = manifest.metrics
            train = Documents(said["rows"], said["tokens"], said["targets"])
        else:
            tokens = self.import_bytes(step) / self._given.imported_bytes_per_token
            train = Documents(tokens / self._given.imported_row_tokens, tokens, 0.9 * tokens)
        return CorpusSize(train, Documents(), min(train.tokens, LONGEST_OVER_MEAN * train.length))

    def import_bytes(self, step: Step) -> float:
        """Of the files that are imported."""
        recipe = step.config.recipe
        assert isinstance(recipe, ImportLogitsRecipe)
        return float(sum(path.stat().st_size for part in recipe.source.files() for path in part))

    def _files(self, source: FilesSource, vocabulary: int, text: float, longest: int) -> Documents:
        size = float(sum(path.stat().st_size for path in source.files()))
        # Parquet is compressed, about threefold where it holds text.
        size *= 3 if source.format == "parquet" else 1
        tokens = tokens_of_bytes(size, self._given.bytes_per_token, vocabulary)
        count = len(source.files()) if source.format == "text" else max(1.0, tokens / text)
        documents = Documents.of(count, tokens / count, self._given.text_targets, longest)
        return documents if source.limit is None or count <= source.limit else documents.scaled(source.limit / count)

    def _instructions(self, step: Step, exercise: float, chat: float) -> tuple[float, float]:
        """Rows, and the tokens of each."""
        evolved = given = step.inputs["instructions"]
        # What cleaning removes is not known before it ran: all rows that evolve makes are counted until then.
        while "instructions" in evolved.inputs:
            evolved = evolved.inputs["instructions"]
        recipe = evolved.config.recipe
        assert isinstance(recipe, EvolveRecipe)
        manifest = self.manifest(given) or self.manifest(evolved)
        by_rule = isinstance(recipe.source, EvolvedExercises)
        rows = float(manifest.metrics["rows"]) if manifest is not None else self.instruction_rows(recipe)
        return rows, exercise if by_rule else chat

    def instruction_rows(self, recipe: EvolveRecipe) -> float:
        """Rows that evolve makes."""
        source = recipe.source
        if isinstance(source, EvolvedExercises):
            return float(len(source.kinds) * len(source.difficulties) * source.count)
        limit = source.max_rows if isinstance(source, DatasetSource) else source.max_seeds
        return float(limit) if limit is not None else self._given.dataset_rows


def _longest(recipe: CorpusRecipe, train: Documents) -> float:
    return max(1.0, min(float(recipe.max_tokens), train.tokens))


def _reshaped(model: Architecture, recipe: ReshapeRecipe) -> Architecture:
    if recipe.keep_layers is not None:
        model = model.with_layers(len(recipe.keep_layers))
    changes = {"model_type": recipe.architecture, "dtype": recipe.dtype}
    return model.model_copy(update={name: value for name, value in changes.items() if value is not None})
