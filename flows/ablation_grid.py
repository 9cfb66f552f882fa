"""What `medius ablate` tries: a profile's optional block `ablations`, and what is tried where it says nothing.

ablations:
  compare: {max_documents: 60, num_arithmetic: 300}
  reversion: [original_rows, shared_trained]
  fusion:
    - {merge_method: ties, each: {density: 0.66}, weights: [[0.5, 0.5], [0.7, 0.3]], parameters: {normalize: true}}
    - {merge_method: slerp, base_model: qwen, parameters: {t: 0.3}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.frozen import Frozen
from tasks.benchmarks.declare import EvaluationTasks
from tasks.compare.stage import CompareRuntime
from tasks.fuse.methods import MERGE_METHODS, check_base_is_written
from tasks.fuse.stage import BASE, FuseRecipe, Setting
from tasks.surgeon.stage import RevertRecipe

STRATEGIES: tuple[str, ...] = get_args(RevertRecipe.model_fields["strategy"].annotation)
"""All that a reversion can do."""
AS_PROFILE = "profile"
"""The name of the fusion that the profile has now, beside those of the grid."""
VARIED = ("merge_method", "base_model", "models", "parameters")
"""The fields of a fusion's recipe that the grid sets; the others are the profile's."""


class Comparison(Frozen):
    """How the candidates of an ablation are measured (see the stage `compare`)."""

    max_documents: int | None = Field(60, ge=2)
    """Held-out texts, of those that the evaluation does not measure."""
    num_arithmetic: int = Field(300, ge=2)
    seed: int = Field(0, ge=0)
    window_tokens: int = Field(2048, ge=2)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    runtime: CompareRuntime = CompareRuntime()


class MergeSweep(Frozen):
    """One merge method with each of some weights."""

    merge_method: Literal[MERGE_METHODS]  # type: ignore[valid-type]
    weights: tuple[tuple[float, ...], ...] = ()
    """One for each branch, in the order of the profile's fusion; left out where the method knows no weights."""
    each: dict[str, Setting] = Field(default_factory=dict)
    """Parameters of every branch, such as density."""
    parameters: dict[str, Setting] = Field(default_factory=dict)
    """The method's own."""
    base_model: str | None = BASE
    """As in a fusion: `base`, a branch, or null for none."""

    @model_validator(mode="after")
    def _base_is_written(self) -> MergeSweep:
        check_base_is_written(self.merge_method, self.model_fields_set)
        return self

    def candidates(self, branches: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The fields VARIED of each fusion, by a name made of what sets it apart.

        Raises:
            BadInputError: other weights than there are branches.
        """
        settings = {**self.each, **self.parameters}
        apart = [f"{name}-{value:g}" for name, value in settings.items() if type(value) in (int, float)]
        if self.base_model not in (None, BASE):
            apart.append(f"base-{self.base_model}")
        found = {}
        for weights in self.weights or ((),):
            if weights and len(weights) != len(branches):
                raise BadInputError(
                    f"ablations.fusion: {self.merge_method} has the weights {list(weights)} for {len(branches)} "
                    f"branches ({', '.join(branches)}); give one for each"
                )
            models: dict[str, Any] = {}
            for index, branch in enumerate(branches):
                own = {**self.each, **({"weight": weights[index]} if weights else {})}
                models[branch] = {"parameters": own} if own else {}
            name = "-".join([self.merge_method, *(f"{weight:g}" for weight in weights), *apart])
            found[name] = {
                "merge_method": self.merge_method,
                "base_model": self.base_model,
                "models": models,
                "parameters": dict(self.parameters),
            }
        return found


class ArmsMeasured(Frozen):
    """How the arms of `medius ablate recipe` are measured, by the stage `evaluate`."""

    tasks: tuple[EvaluationTasks, ...] = ()
    """Other items than those that the profile's evaluation reports; empty takes its exercises, of the split `dev`."""
    max_documents: int | None = Field(60, ge=2)
    """Held-out texts after those of the profile's evaluation."""


class Ablations(Frozen):
    """What is compared outside the recipe; nothing here changes what the recipe makes."""

    compare: Comparison = Comparison()
    recipe: ArmsMeasured = ArmsMeasured()
    reversion: tuple[str, ...] = Field(STRATEGIES, min_length=1)
    """Strategies of the surgeon's mode revert."""
    fusion: tuple[MergeSweep, ...] = ()
    """Merges tried beside the profile's own; empty takes `default_sweeps`."""

    @field_validator("reversion")
    @classmethod
    def _known(cls, strategies: tuple[str, ...]) -> tuple[str, ...]:
        for strategy in strategies:
            if strategy not in STRATEGIES:
                raise ValueError(f"{strategy!r} is no strategy of reversion; there are: {', '.join(STRATEGIES)}")
        return tuple(dict.fromkeys(strategies))


def default_sweeps(branches: Sequence[str]) -> tuple[MergeSweep, ...]:
    """Methods that take these branches, each with branches alike and with each one favoured.

    Weights of task_arithmetic add up to more than 1: adding up to 1 it is the weighted mean, which `linear` is.
    """
    shares = _shares(len(branches), 1.0)
    alike = shares[:1]
    normal: dict[str, Setting] = {"normalize": True}
    sparse: dict[str, Setting] = {"density": 0.66}
    sweeps = [
        _sweep("linear", shares, base_model=None),
        _sweep("task_arithmetic", _shares(len(branches), 1.5)),
        _sweep("ties", shares, each=sparse, parameters=normal),
        _sweep("dare_ties", alike, each=sparse, parameters=normal),
        _sweep("della", alike, each={"density": 0.66, "epsilon": 0.1}, parameters=normal),
        _sweep("breadcrumbs", alike, each={"density": 0.9, "gamma": 0.01}, parameters=normal),
    ]
    if len(branches) > 1:
        sweeps += [
            _sweep("sce", parameters={"select_topk": 0.5}),
            _sweep("karcher", base_model=None),
        ]
    if len(branches) == 2:
        sweeps += [_sweep("slerp", base_model=branches[0], parameters={"t": t}) for t in (0.3, 0.5, 0.7)]
        sweeps += [_sweep("arcee_fusion", base_model=branch) for branch in branches]
    return tuple(sweeps)


def _sweep(method: str, weights: tuple[tuple[float, ...], ...] = (), **fields: Any) -> MergeSweep:
    return MergeSweep(merge_method=method, weights=weights, **fields)


def _shares(count: int, total: float) -> tuple[tuple[float, ...], ...]:
    """Weights that add up to `total`: equal ones, then 70 % to each branch in turn."""
    equal = (round(total / count, 4),) * count
    if count == 1:
        return (equal,)
    rest = round(0.3 * total / (count - 1), 4)
    heavy = round(0.7 * total, 4)
    return (equal, *(tuple(heavy if at == chosen else rest for at in range(count)) for chosen in range(count)))


def fusion_candidates(own: FuseRecipe, sweeps: Sequence[MergeSweep]) -> dict[str, FuseRecipe]:
    """The profile's own fusion under AS_PROFILE, then those of the grid that differ from it.

    Raises:
        BadInputError: a fusion that cannot be, or two of one name.
    """
    found = {AS_PROFILE: own}
    for sweep in sweeps or default_sweeps(own.branches):
        for name, fields in sweep.candidates(own.branches).items():
            if name in found:
                raise BadInputError(
                    f"ablations.fusion has two entries that would be called {name}; leave one out, or set them apart "
                    f"by a number in `each` or `parameters`"
                )
            recipe = _recipe(name, own, fields)
            if recipe not in found.values():
                found[name] = recipe
    return found


def _recipe(name: str, own: FuseRecipe, fields: Mapping[str, Any]) -> FuseRecipe:
    try:
        return FuseRecipe.model_validate({**own.model_dump(exclude=set(VARIED)), **fields})
    except ValueError as error:
        raise BadInputError(f"ablations.fusion: {name} is no fusion: {error}; correct that entry") from error
