"""`medius plan PROFILE --cost`: what a run takes, stage by stage and as a whole, less what is finished."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flows.forecast_dump import nodes_of
from flows.forecasts import Forecasts
from flows.model_sizes import Sizes
from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.store import Store
from tasks.dump_logits.stage import DumpLogitsRuntime
from tasks.planning.assumptions import Assumptions, assumptions
from tasks.planning.forecast import RECORDS, Forecast
from tasks.planning.hardware import OWN_TABLE, Hardware, hardware_named, hardware_table
from tasks.planning.measured import dump_progress, training_progress
from tasks.planning.quantities import HOUR
from tasks.planning.schedule import Schedule, schedule
from tasks.runtime.declare import Step
from tasks.runtime.state import StepState, step_states

DONE = {"finished", "gate failed", "stale"}
BEGUN = {"working", "started"}


@dataclass(frozen=True)
class CostOptions:
    """What the command line says of a forecast."""

    given: Assumptions
    tokens: float | None = None
    """Training tokens of each corpus that a teacher reads."""
    hardware: str | None = None
    prices: Mapping[str, float] | None = None
    """USD an hour of a device, by the hardware's name."""
    nodes: int = 1
    """With accelerators, that the run has to itself."""

    @classmethod
    def read(
        cls,
        *,
        tokens: float | None = None,
        hardware: str | None = None,
        hardware_file: str | None = None,
        prices: Iterable[str] = (),
        assume: Iterable[str] = (),
        nodes: int = 1,
    ) -> CostOptions:
        """From the options of the command line.

        Raises:
            BadInputError: one of them is malformed, or names what does not exist.
        """
        if hardware_file is not None:
            os.environ[OWN_TABLE] = str(Path(hardware_file).expanduser())
        if hardware is not None:
            hardware_named(hardware)
        if tokens is not None and not 0 < tokens < float("inf"):
            raise BadInputError(f"--tokens is {tokens}; give the training tokens of a corpus, such as 5e8")
        return cls(assumptions(assume), tokens, hardware, dict(_price(text) for text in prices), nodes)


def _price(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        price = float(value)
    except ValueError:
        price = -1.0
    if name not in hardware_table() or not 0 <= price < float("inf"):
        raise BadInputError(
            f"--price {text!r} must be NAME=USD for an hour of one device, with one of {', '.join(hardware_table())}"
        )
    return name, price


@dataclass(frozen=True)
class StepCost:
    """One stage: what it takes from start to end, and what of that is still to come."""

    state: StepState
    whole: Forecast
    left: Forecast

    @property
    def label(self) -> str:
        return self.state.step.label

    @property
    def nodes(self) -> float:
        """Whose accelerators what is left takes, in parts of one."""
        hardware = self.left.hardware
        return self.left.devices / hardware.per_node if hardware is not None and hardware.accelerator else 0.0


@dataclass(frozen=True)
class RunCost:
    """All stages of a run, each after its inputs."""

    steps: tuple[StepCost, ...]
    schedule: Schedule[str]
    """By label, of what is left, with the stages side by side that can be."""
    parallel_stages: int
    """That run at one time, at most."""
    options: CostOptions

    @property
    def device_hours(self) -> float:
        """Of accelerators, still to come."""
        return sum(step.left.device_hours for step in self.steps)

    @property
    def usd(self) -> float:
        """Still to be paid for devices while they are busy."""
        return sum(step.left.usd(self.options.prices or {}) for step in self.steps)

    @property
    def rented(self) -> tuple[float, float]:
        """Device-hours and USD of whole nodes that are paid for from the start to the end, busy or not.

        Nodes are of the kind of hardware that the run uses for the longest.
        """
        kinds: dict[str, Hardware] = {}
        hours: dict[str, float] = {}
        for step in self.steps:
            if step.left.hardware is not None and step.left.uses_accelerators:
                name = step.left.hardware.name
                kinds[name] = step.left.hardware
                hours[name] = hours.get(name, 0.0) + step.left.device_hours
        if not hours:
            return 0.0, 0.0
        hardware = kinds[max(hours, key=lambda name: hours[name])]
        price = (self.options.prices or {}).get(hardware.name, hardware.usd_per_hour)
        rented = self.options.nodes * hardware.per_node * self.schedule.length / HOUR
        return rented, rented * price

    @property
    def most_devices(self) -> float:
        """Accelerators that are busy at one time, at most."""
        return self.schedule.most(
            {step.label: step.left.devices if step.left.uses_accelerators else 0 for step in self.steps}
        )

    @property
    def stored(self) -> float:
        """Bytes in the store at the end, what is finished included."""
        return sum(step.whole.stored for step in self.steps)


def cost_of(steps: Sequence[Step], store: Store, parallel_stages: int, options: CostOptions) -> RunCost:
    """Forecasts every step; what is finished or has begun is measured instead.

    Raises:
        BadInputError: the shape of a model is not known; the message says where to put it.
    """
    costs = step_costs(steps, steps, store, options)
    labels = {cost.state.step.key: cost.label for cost in costs}
    planned = schedule(
        {cost.label: cost.left.duration for cost in costs},
        {cost.label: [labels[source.key] for source in cost.state.step.inputs.values()] for cost in costs},
        parallel_stages,
        {cost.label: cost.nodes for cost in costs},
        options.nodes,
    )
    return RunCost(costs, planned, parallel_stages, options)


def step_costs(
    chosen: Sequence[Step], steps: Sequence[Step], store: Store, options: CostOptions
) -> tuple[StepCost, ...]:
    """The same of single steps of a run; `steps` are all of it."""
    dumped = {step.inputs["corpus"].key for step in steps if step.stage.name == "dump_logits"}
    states = step_states(chosen, store)
    found = {state.step.key: state.manifest for state in states}
    sizes = Sizes(store, options.given, options.tokens, dumped, found)
    forecasts = Forecasts(sizes, options.given, options.hardware)
    return tuple(_step_cost(state, store, forecasts) for state in states)


def _step_cost(state: StepState, store: Store, forecasts: Forecasts) -> StepCost:
    step = state.step
    if state.manifest is not None and state.state in DONE:
        return StepCost(state, _finished(state, forecasts), Forecast())
    artifact, begun = Artifact(store, step.directory), state.state in BEGUN
    if begun and step.stage.name == "dump_logits" and (dump := dump_progress(artifact)) is not None:
        whole = forecasts.of(step, dump)
        part = 1 - dump.tokens / max(dump.tokens, whole.tokens)
        return StepCost(state, whole, whole.left(part, unstored=part))
    whole = forecasts.of(step)
    if begun and step.stage.name in {"distill", "sft"} and (training := training_progress(artifact)) is not None:
        part = 1 - training.tokens / max(training.tokens, whole.tokens)
        if speed := training.tokens_per_second:
            measured = f"{speed:,.0f} tokens/s up to step {training.step}"
            whole = replace(whole.at_speed(speed), measured=measured)
        # The model is stored at the end.
        return StepCost(state, whole, whole.left(part, unstored=1.0))
    return StepCost(state, whole, whole)


def _finished(state: StepState, forecasts: Forecasts) -> Forecast:
    """Of a finished stage: what it took."""
    manifest = state.manifest
    assert manifest is not None
    runtime = state.step.config.runtime
    computes = state.step.stage.name in {"dump_logits", "distill", "sft", "choose", "evaluate", "surgeon"}
    hardware = forecasts.device(state.step) if computes else None
    per_process = hardware.devices_of(runtime.threads) if hardware is not None else 1
    launches, nodes = 1, runtime.num_nodes
    if isinstance(runtime, DumpLogitsRuntime) and hardware is not None:
        # Only a flow run of a pool has others beside it.
        launches = runtime.replicas if manifest.provenance.pool is not None else 1
        nodes = nodes_of(runtime, hardware, launches)
    tokens = manifest.metrics.get("tokens", 0)
    size = float(sum(entry.size for entry in manifest.objects))
    return Forecast(
        tokens=float(tokens) if isinstance(tokens, int | float) else 0.0,
        hardware=hardware,
        devices=runtime.num_processes * runtime.num_nodes * launches * per_process if computes else 0,
        per_process=per_process,
        nodes=nodes,
        seconds={"it took": manifest.provenance.seconds},
        stored=size,
        moved=size,
        objects=len(manifest.objects) + RECORDS,
        measured="all of it",
    )
