"""Instruction data for the final fine-tuning: generated exercises, a ready data set, or seeds evolved by a model.

Where the data comes from is the recipe; which endpoint serves the models, and how hard it may be pressed, is the
runtime. No key is ever part of either: the runtime names the environment variable that holds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.fingerprint import file_sha256
from tasks.artifacts.frozen import Frozen
from tasks.artifacts.pinned import Pinned
from tasks.runtime.declare import GateResult, Gates, Runtime, Stage, StageConfig, at_least, at_most


class HubRows(Frozen):
    """Rows of a data set on the Hugging Face hub, at one commit."""

    origin: Literal["hub"] = "hub"
    dataset: str
    subset: str | None = None
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    """A full commit hash: a branch or a tag may move."""
    split: str = "train"
    messages_field: str = "conversations"


class FileRows(Pinned):
    """Rows of a local file, identified by its content."""

    origin: Literal["file"] = "file"
    path: str
    format: Literal["json", "parquet"] = "json"
    """`json` is an array of objects or one object a line."""
    messages_field: str = "conversations"

    def with_identity(self) -> Self:
        """Itself with the content hash of the file as it is now. Raises BadInputError."""
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise BadInputError(f"the instruction file {self.path} does not exist; correct `path` in evolve.recipe")
        return self.pinned(file_sha256(path), self.path, "evolve.recipe")


class InlineRows(Frozen):
    """Seed instructions written in the profile."""

    origin: Literal["inline"] = "inline"
    instructions: tuple[str, ...] = Field(min_length=1)


class ExercisesSource(Frozen):
    """Verifiable generated tasks with their right answers, of the training split only."""

    kind: Literal["exercises"]
    kinds: tuple[str, ...] = Field(min_length=1)
    """Names from tasks.exercises.KINDS."""
    difficulties: tuple[int, ...] = Field(min_length=1)
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
    rows: Annotated[HubRows | FileRows, Field(discriminator="origin")]
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
    seeds: Annotated[HubRows | FileRows | InlineRows, Field(discriminator="origin")]
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

    initial_method: str | None = None
    """None starts from the method in prompts.py; or the method.txt of an earlier artifact."""
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
    unchanged_similarity: float = Field(0.95, gt=0, le=1)
    """A rewriting at least this similar to an earlier form of its instruction has not evolved."""


class EvolveRecipe(Frozen):
    """What the instruction data is."""

    source: Annotated[ExercisesSource | DatasetSource | AutoEvolSource, Field(discriminator="kind")]

    def with_identity(self) -> EvolveRecipe:
        """Itself with content hashes for local files, as the key needs them. Raises BadInputError."""
        source = self.source
        if isinstance(source, DatasetSource) and isinstance(source.rows, FileRows):
            source = source.model_copy(update={"rows": source.rows.with_identity()})
        elif isinstance(source, AutoEvolSource) and isinstance(source.seeds, FileRows):
            source = source.model_copy(update={"seeds": source.seeds.with_identity()})
        return self.model_copy(update={"source": source})


class Endpoint(Frozen):
    """An OpenAI-compatible endpoint and how it is treated."""

    base_url: str
    """Up to and including the /v1 that most servers have."""
    api_key_env: str | None = None
    """Name of the environment variable with the key; None for a server that asks for none."""
    concurrency: int = Field(8, ge=1)
    timeout_seconds: float = Field(300, gt=0)
    """For one try of one call, from the first byte sent to the last received."""
    max_retries: int = Field(6, ge=0)
    """Further tries after a 408, 409, 429, 5xx, lost connection, time-out, or an answer that is none."""
    first_delay_seconds: float = Field(1, ge=0)
    """Doubled at each retry, then drawn between half of that and all of it."""
    max_delay_seconds: float = Field(60, ge=0)
    """The longest pause; an endpoint that asks for a longer one ends this launch."""
    token_budget: int | None = Field(None, ge=1)
    """Prompt and completion tokens over all launches. Calls in flight finish: at most `concurrency` go beyond."""
    max_failed_calls: int = Field(10, ge=0)
    """Calls that the endpoint may refuse (400, 413, 422) or answer with an error text; each costs its row. One more
    ends the launch."""

    @field_validator("base_url")
    @classmethod
    def _no_secret_in_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("base_url must be an http or https URL")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("base_url must hold no user, password or query: name the key's variable in api_key_env")
        return url


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


STAGE = Stage(name="evolve", version=1, config=EvolveConfig, judge=judge)
