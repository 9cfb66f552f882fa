"""Instruction data for the final fine-tuning: generated exercises, a ready data set, or seeds evolved by a model.

Where the data comes from is the recipe; which endpoint serves the models, and how hard it may be pressed, is the
runtime. No key is ever part of either: the runtime names the environment variable that holds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tasks.artifacts.frozen import Frozen
from tasks.evolve.endpoint import Endpoint
from tasks.evolve.method_file import MethodFile
from tasks.evolve.row_sources import Conversations, Seeds
from tasks.exercises.fields import Difficulty, Kinds
from tasks.runtime.declare import GateResult, Gates, Runtime, Stage, StageConfig, at_least, at_most


class ExercisesSource(Frozen):
    """Verifiable generated tasks with their right answers, of the training split only."""

    kind: Literal["exercises"]
    kinds: Kinds
    difficulties: tuple[Difficulty, ...] = Field(min_length=1)
    """Levels in the order in which they stand in the data."""
    count: int = Field(ge=1)
    """Exercises of each kind at each level, before repeated prompts are removed."""
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _no_repetition(self) -> ExercisesSource:
        if len(set(self.kinds)) < len(self.kinds) or len(set(self.difficulties)) < len(self.difficulties):
            raise ValueError("`kinds` and `difficulties` must each name a value once")
        return self


class DatasetSource(Frozen):
    """A ready data set of conversations, in ShareGPT form (from, value) or as messages (role, content)."""

    kind: Literal["dataset"]
    rows: Conversations
    max_rows: int | None = Field(None, ge=1)
    """A sample of this size drawn by `seed`; None takes every row."""
    seed: int = Field(0, ge=0)


class Sampling(Frozen):
    """A model by the name that the endpoint knows it by, and how it is sampled."""

    model: str
    temperature: float = Field(ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(ge=1)


class AutoEvolSource(Frozen):
    """Seeds rewritten by a method that is itself improved by a model (Auto Evol-Instruct, Zeng et al. 2024)."""

    kind: Literal["autoevol"]
    reading: Literal[2] = 2
    """How replies become rows, and what is kept of them; raised when that changes. It stands here and not in the
    stage's version, which would give ready data sets and exercises new keys too, with all that was trained on them."""
    seeds: Seeds
    """The first user turn of a conversation is its instruction; a field with plain text is one as it stands."""
    max_seeds: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)
    """Chooses seeds, development set and batches, and gives each call its own sampling seed."""
    send_seed: bool = True
    """Off for endpoints that refuse the `seed` parameter."""

    evolver: Sampling
    optimiser: Sampling
    answerer: Sampling
    judge: Sampling | None = None
    """None: only the patterns of the failure detector judge a method. Set: an answer must pass this model as well."""

    method: str | MethodFile | None = None
    """What the search starts from: a text, a file or an earlier artifact; None: the method in prompts.py."""
    method_rounds: int = Field(3, ge=0)
    """Rounds of evolve, analyse, optimise, try. 0 takes the first method as it is."""
    batch_size: int = Field(10, ge=1)
    """Seeds whose trajectories are analysed in a round."""
    trajectory_rounds: int = Field(2, ge=1)
    """Evolutions of each of them."""
    candidates: int = Field(3, ge=1)
    """New methods proposed in a round."""
    dev_size: int = Field(20, ge=1)
    """Held-out seeds on which methods are compared: a failure rate is a multiple of 1 / dev_size."""

    evolution_rounds: int = Field(2, ge=1)
    """Evolutions of every seed with the final method."""
    followup_turns: int = Field(0, ge=0)
    """Further user turns that `evolver` writes after each answer, each answered in its turn. 0: single-turn rows."""
    unchanged_similarity: float = Field(0.95, gt=0, le=1)
    """A rewriting at least this similar to an earlier form of its instruction has not evolved."""

    @property
    def models(self) -> tuple[str, ...]:
        """The names of all models that are called."""
        roles = (self.evolver, self.optimiser, self.answerer, self.judge)
        return tuple(sorted({role.model for role in roles if role is not None}))


class EvolveRecipe(Frozen):
    """What the instruction data is."""

    source: Annotated[ExercisesSource | DatasetSource | AutoEvolSource, Field(discriminator="kind")]

    def with_identity(self) -> Self:
        """Itself with content hashes for local files, as the key needs them. Raises BadInputError."""
        source = self.source
        parts = {name: getattr(source, name) for name in ("rows", "seeds", "method") if hasattr(source, name)}
        known = {name: part.with_identity() for name, part in parts.items() if hasattr(part, "with_identity")}
        return self.model_copy(update={"source": source.model_copy(update=known)})


class EvolveRuntime(Runtime):
    """Runtime with the endpoint of `autoevol`; the other sources need none."""

    endpoint: Endpoint | None = None


class EvolveGates(Gates):
    """When the data is enough and clean enough to train on."""

    min_rows: int | None = Field(1, ge=0)
    max_rejected_fraction: float | None = Field(0.5, ge=0, le=1)


class EvolveConfig(StageConfig):
    """Block `evolve` of a profile."""

    recipe: EvolveRecipe
    runtime: EvolveRuntime = EvolveRuntime()
    gates: EvolveGates = EvolveGates()

    @model_validator(mode="after")
    def _priced(self) -> Self:
        source, endpoint = self.recipe.source, self.runtime.endpoint
        if isinstance(source, AutoEvolSource) and endpoint is not None and endpoint.cost_budget is not None:
            unpriced = [model for model in source.models if model not in endpoint.prices]
            if unpriced:
                raise ValueError(
                    f"runtime.endpoint.cost_budget cannot be kept without the prices of {', '.join(unpriced)}; put "
                    f"them into runtime.endpoint.prices, or limit tokens by token_budget"
                )
        return self


def judge(metrics: Mapping[str, Any], gates: EvolveGates) -> list[GateResult]:
    """Verdicts on the number of rows and on the share of candidates that made none."""
    return [
        *at_least("min_rows", metrics.get("rows"), gates.min_rows, "Rows that can be trained on."),
        *at_most(
            "max_rejected_fraction",
            metrics.get("rejected_fraction"),
            gates.max_rejected_fraction,
            "Share of seeds, exercises or data set rows that were dropped; the reasons are counted in evolve.json.",
        ),
    ]


STAGE = Stage(name="evolve", version=2, config=EvolveConfig, judge=judge)
