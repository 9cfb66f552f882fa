"""The vocabulary in which a stage declares itself. Inert: no torch, no Prefect, no store.

A stage is a folder with stage.py (its config and one `STAGE = Stage(...)`) and worker.py (the heavy work). A config
has three parts that never mix: `recipe` says what the result is and is hashed into its key; `runtime` says on what and
how it is made; `gates` says when the result is good enough for the next stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from tasks.artifacts.fingerprint import artifact_key
from tasks.artifacts.frozen import Frozen


def recipe_with(field: str, values: Any, recipe_of: Callable[[Mapping[str, Any]], Frozen]) -> Any:
    """What a config makes of the values of its recipe before they are validated: where they have the field, which only
    a subclass of the recipe knows, `recipe_of` says which class they are of.

    Raises:
        ValueError: they are no such recipe.
    """
    if not isinstance(values, Mapping) or field not in values:
        return values
    try:
        return recipe_of(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


class Runtime(Frozen):
    """How a stage is run. Nothing here may change what it produces beyond the tolerances stated by the stage."""

    pool: str | None = Field(None, pattern=r"^[A-Za-z0-9][\w.-]*$")
    """The Prefect work pool that makes the stage, by its deployment single-stage/<pool>. A run that came of no
    deployment makes it in its own process."""
    launcher: Literal["python", "torchrun", "deepspeed"] = "python"
    num_processes: int = Field(1, ge=1)
    """On each node."""
    num_nodes: int = Field(1, ge=1)
    """All of them mount one scratch folder and one checkout at the same paths."""
    threads: int = Field(1, ge=1)
    """OMP_NUM_THREADS of each process. More than one may change the last bits of floating-point sums."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    hostfile: str | None = None
    """For `deepspeed` on several nodes: a line `name slots=8` each, of which the first `num_nodes` are used."""
    rendezvous: str | None = Field(None, pattern=r"^(\[[0-9A-Fa-f:]+\]|[\w.-]+)(:\d{1,5})?$")
    """On several nodes: `host` or `host:port` of the one at which they meet. Without a port each launch draws its own,
    so that two launches that name one host do not meet. `deepspeed` takes the first address that `hostname -I` says of
    the hostfile's first host where it is not given, which may be one that the others do not reach."""
    node_command: tuple[str, ...] = ()
    """For `torchrun` on several nodes: a command that runs its arguments once on every node, such as
    [srun, --nodes=2, --ntasks-per-node=1]."""
    retries: int = Field(2, ge=0)
    retry_delay_seconds: float = Field(5, ge=0)
    stop_grace_seconds: float = Field(60, ge=0)
    """What a worker may take for its last checkpoint when it is stopped or cancelled; then it is killed."""
    min_tokens_per_second: float | None = Field(None, gt=0)
    """The alert "stage is slow" is for less than this. Nothing else hangs on it."""
    lease_ttl_seconds: float = Field(60, ge=5)

    @model_validator(mode="after")
    def _all_nodes_can_be_started(self) -> Self:
        wanted = {"torchrun": {"rendezvous", "node_command"}, "deepspeed": {"hostfile"}}.get(self.launcher, set())
        given = {name for name in ("hostfile", "rendezvous", "node_command") if getattr(self, name)}
        if self.num_nodes == 1 and given:
            raise ValueError(f"{_listed(given)} is for several nodes; say how many in num_nodes, or leave it out")
        if self.launcher == "python" and self.num_processes > 1:
            raise ValueError(
                f"num_processes is {self.num_processes}, but launcher python starts one process; set launcher to "
                f"torchrun or deepspeed, or num_processes to 1"
            )
        optional = {"rendezvous"} if self.launcher == "deepspeed" else set()
        if self.num_nodes > 1 and (not wanted or given - optional != wanted):
            raise ValueError(
                f"num_nodes is {self.num_nodes}, which launcher torchrun starts with rendezvous and node_command, and "
                f"launcher deepspeed with hostfile and, if wanted, rendezvous; here launcher is {self.launcher} with "
                f"{_listed(given) or 'neither'}"
            )
        return self


def _listed(names: Iterable[str]) -> str:
    return " and ".join(sorted(names))


class Gates(Frozen):
    """Thresholds of a stage; None switches one off."""


class StageConfig(Frozen):
    """Base of every stage's config block. Subclasses narrow the three fields."""

    recipe: Frozen
    runtime: Runtime = Runtime()
    gates: Gates = Gates()


@dataclass(frozen=True)
class GateResult:
    """One judged threshold. `passed` is stated by the stage, so that a missing value can only fail."""

    gate: str
    passed: bool
    value: float | None
    threshold: float
    comparison: str
    """How value and threshold stand when it passes, such as "<=" ."""
    meaning: str
    """One sentence for people who did not write the stage."""


def at_most(gate: str, value: float | None, threshold: float | None, meaning: str) -> list[GateResult]:
    """Judges value <= threshold; nothing if the threshold is None."""
    if threshold is None:
        return []
    return [GateResult(gate, value is not None and value <= threshold, value, threshold, "<=", meaning)]


def at_least(gate: str, value: float | None, threshold: float | None, meaning: str) -> list[GateResult]:
    """Judges value >= threshold; nothing if the threshold is None."""
    if threshold is None:
        return []
    return [GateResult(gate, value is not None and value >= threshold, value, threshold, ">=", meaning)]


def _no_gates(_metrics: Mapping[str, Any], _gates: Any) -> list[GateResult]:
    return []


@dataclass(frozen=True)
class Stage:
    """A kind of work: its name, the version of its meaning, its config and how its metrics are judged."""

    name: str
    version: int
    """Raised in the commit that changes what the output means."""
    config: type[StageConfig]
    judge: Callable[[Mapping[str, Any], Any], list[GateResult]] = _no_gates
    """(metrics of the artifact, gates) -> verdicts. Pure, so that a changed threshold needs no new work."""
    shared: bool = False
    """Whether several launches may work on one artifact at a time, its workers leasing shards of their own."""
    accelerated: bool = False
    """Whether its workers compute on `runtime.device`; those of other stages leave accelerators alone."""

    @property
    def worker(self) -> str:
        return f"tasks.{self.name}.worker"


@dataclass(frozen=True)
class Step:
    """A stage with a config and inputs: one node of the DAG, whose key is known before anything runs."""

    stage: Stage
    label: str
    config: StageConfig
    inputs: Mapping[str, Step] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        return artifact_key(
            self.stage.name,
            self.stage.version,
            self.config.recipe,
            {role: step.key for role, step in self.inputs.items()},
        )

    @property
    def directory(self) -> str:
        """The artifact's folder in any store."""
        return f"artifacts/{self.stage.name}/{self.label}-{self.key[:16]}"
