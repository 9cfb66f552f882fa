"""The forecast of each stage: which formula of tasks/planning/ it takes, with what of the profile in it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from flows.forecast_choice import forecast_choice
from flows.forecast_dump import forecast_dump
from flows.forecast_evaluation import forecast_evaluation
from flows.forecast_training import forecast_training
from flows.model_sizes import Sizes
from tasks.evolve.stage import AutoEvolSource, EvolveRecipe
from tasks.modeling.weight_files import num_weight_files
from tasks.models.stage import GgufSource, HubSource
from tasks.planning.architecture import Architecture
from tasks.planning.assumptions import Assumptions, start_seconds, utilisation_of
from tasks.planning.forecast import RECORDS, Forecast
from tasks.planning.hardware import CPU_CORE, Hardware, hardware_named
from tasks.planning.measured import DumpProgress
from tasks.planning.quantities import byte_size, figure
from tasks.runtime.declare import Step
from tasks.surgeon.batches import BY_TOKENSURGEON, PURSUED_ON_CPU, PURSUED_ON_GPU
from tasks.surgeon.stage import RevertRecipe, SurgeonRuntime, TransplantRecipe

MODEL_FILES = 5
"""Objects of a model besides its weights: configs and tokenizer."""
DEFAULT_ACCELERATOR = "h100-sxm"
APPROXIMATING = {"omp_anchored", "omp", "common_interpolation", "delta_transplant", "back_transplant"}
"""Methods and strategies of the surgeon that look for rows that a row is made of."""
CLEANED_ROWS_PER_SECOND = 300.0
"""Rows of about 400 words on one core: python -m tests.clean.speed."""


@dataclass(frozen=True)
class Forecasts:
    """Makes forecasts of the steps of one run."""

    sizes: Sizes
    given: Assumptions
    hardware: str | None = None
    """Takes the place of what the profile names, wherever a stage may use an accelerator."""

    def of(self, step: Step, progress: DumpProgress | None = None) -> Forecast:
        """`progress`: of an unfinished dump, whose size and speed then are its own.

        Raises:
            BadInputError: a model's shape is not known.
        """
        ways: dict[str, Callable[[Step], Forecast]] = {
            "models": self._models,
            "corpus": self._corpus,
            "surgeon": self._surgeon,
            "reshape": self._rewrite,
            "publish": self._rewrite,
            "fuse": self._fuse,
            "evolve": self._evolve,
            "clean": self._clean,
            "import_logits": self._import,
        }
        name, hardware = step.stage.name, self.device(step)
        if name == "dump_logits":
            forecast = forecast_dump(step, self.sizes, self.given, hardware, progress)
        elif name in {"distill", "sft"}:
            forecast = forecast_training(step, self.sizes, self.given, hardware)
        elif name == "evaluate":
            forecast = forecast_evaluation(step, self.sizes, self.given, hardware)
        elif name == "choose":
            forecast = forecast_choice(step, self.sizes, self.given, hardware)
        elif name in ways:
            forecast = ways[name](step)
        else:
            return Forecast(warnings=(f"nothing is known of what the stage {name} costs; it counts as nothing",))
        return forecast.checked(hardware)

    def device(self, step: Step) -> Hardware:
        """On what a stage computes. `auto` is a processor unless an accelerator is named."""
        runtime = step.config.runtime
        named = self.hardware or getattr(runtime, "hardware", None)
        if runtime.device == "cpu" or (runtime.device == "auto" and named is None):
            return hardware_named(CPU_CORE)
        return hardware_named(named or DEFAULT_ACCELERATOR)

    # Stages without an accelerator

    def _models(self, step: Step) -> Forecast:
        source = step.config.recipe.source  # type: ignore[attr-defined]
        if source.kind == "tokenizer":
            return Forecast(seconds={"start": start_seconds(self.given)}, stored=10e6, objects=3 + RECORDS)
        model = self.sizes.model(step)
        size = model.bytes()
        if isinstance(source, HubSource) and source.mode == "reference":
            return Forecast(
                seconds={"start": start_seconds(self.given)},
                stored=20e6,
                moved=20e6,
                objects=MODEL_FILES + RECORDS,
                how=(f"{byte_size(size)} of weights stay on the hub",),
            )
        hub = isinstance(source, HubSource)
        seconds = {"download": size / self.given.hub_bytes_per_second if hub else 0.0}
        return Forecast(
            seconds={"start": start_seconds(self.given), **seconds, "store": size / self.given.store_bytes_per_second},
            stored=size,
            # Other files are stored where they lie.
            scratch=size if isinstance(source, GgufSource) else 0.0,
            moved=2 * size if hub else size,
            objects=_model_objects(size),
            how=(f"{figure(model.parameters)} parameters, {byte_size(size)}",),
        )

    def _corpus(self, step: Step) -> Forecast:
        corpus = self.sizes.corpus(step)
        size = corpus.tokens * self.given.corpus_bytes_per_token
        return Forecast(
            tokens=corpus.tokens,
            seconds={
                "start": start_seconds(self.given),
                "tokens": corpus.tokens / self.given.corpus_tokens_per_second,
                "store": size / self.given.store_bytes_per_second,
            },
            stored=size,
            scratch=size,
            moved=size,
            objects=3 + RECORDS,
            how=(
                f"{figure(corpus.train.rows)} rows for training with {corpus.train.length:,.0f} tokens each, "
                f"{figure(corpus.train.targets)} targets; {figure(corpus.heldout.tokens)} tokens held out",
            ),
        )

    def _evolve(self, step: Step) -> Forecast:
        recipe = step.config.recipe
        assert isinstance(recipe, EvolveRecipe)
        source, rows = recipe.source, self.sizes.instruction_rows(recipe)
        size = rows * self.given.tokens_per_chat * 4.5
        made = Forecast(
            seconds={"start": start_seconds(self.given), "rows": rows / 20_000},
            stored=size,
            moved=2 * size,
            objects=2 + RECORDS,
        )
        if not isinstance(source, AutoEvolSource):
            return made
        turns = source.followup_turns
        calls = rows * (source.evolution_rounds + 1 + 2 * turns)
        evolver, answerer = source.evolver.max_tokens, source.answerer.max_tokens
        tokens = rows * ((source.evolution_rounds + turns) * evolver + (1 + turns) * answerer)
        return replace(
            made,
            tokens=tokens,
            how=(f"about {figure(calls)} calls beside the search, at most {figure(tokens)} tokens written",),
            warnings=("the endpoint's time and price are not in the sums; runtime.endpoint.cost_budget limits it",),
        )

    def _clean(self, step: Step) -> Forecast:
        recipe = step.inputs["instructions"].config.recipe
        assert isinstance(recipe, EvolveRecipe)
        rows = self.sizes.instruction_rows(recipe)
        size = rows * self.given.tokens_per_chat * 4.5
        return Forecast(
            seconds={"start": start_seconds(self.given), "rows": rows / CLEANED_ROWS_PER_SECOND},
            stored=size,
            moved=2 * size,
            objects=3,
        )

    def _import(self, step: Step) -> Forecast:
        size, tokens = self.sizes.import_bytes(step), self.sizes.imported(step).tokens
        return Forecast(
            tokens=tokens,
            seconds={"start": start_seconds(self.given), "encoding": tokens / self.given.encoded_tokens_per_second},
            stored=size,
            moved=2 * size,
            objects=math.ceil(size / 20e6) + RECORDS,
            how=(f"{byte_size(size)} at {self.given.imported_bytes_per_token:.0f} bytes a token",),
        )

    def _rewrite(self, step: Step) -> Forecast:
        if step.stage.name == "reshape":
            return self._rewritten(self.sizes.model(step), read=1)
        # The files are links to those of the input.
        return replace(self._rewritten(self.sizes.model(step.inputs["model"]), read=1), scratch=0.0)

    def _fuse(self, step: Step) -> Forecast:
        model = self.sizes.model(step)
        return replace(
            self._rewritten(model, read=len(step.inputs)),
            host_memory=4.0 * (len(step.inputs) + 2) * model.end,
            how=(f"{len(step.inputs)} models of {byte_size(model.bytes())} are read, tensor by tensor",),
        )

    def _rewritten(self, model: Architecture, read: int) -> Forecast:
        """A model that is made of `read` others of its size without computing much."""
        size = model.bytes()
        return Forecast(
            seconds={
                "start": start_seconds(self.given),
                "disk": (read + 1) * size / self.given.disk_bytes_per_second,
                "store": (read + 1) * size / self.given.store_bytes_per_second,
            },
            stored=size,
            scratch=size,
            moved=(read + 1) * size,
            objects=_model_objects(size),
        )

    # Stages that compute

    def _surgeon(self, step: Step) -> Forecast:
        hardware, recipe = self.device(step), step.config.recipe
        model = self.sizes.model(step)
        moved = self._rewritten(model, read=2)
        if isinstance(recipe, TransplantRecipe):
            rows_of = self.sizes.model(step.inputs["donor"]) if recipe.method in APPROXIMATING else None
            anchored = recipe.method == "omp_anchored"
        else:
            assert isinstance(recipe, RevertRecipe)
            rows_of = self.sizes.model(step) if recipe.strategy in APPROXIMATING else None
            anchored = True
        if rows_of is None:
            return moved
        invented = self.given.invented_fraction * rows_of.rows
        anchors = min(float(recipe.num_anchors), rows_of.rows - invented) if anchored else rows_of.rows - invented
        matrices = 1 if rows_of.tied else 2
        # Correlations with all anchors, once with Gram's matrix, else for each of the k that are chosen.
        rounds = 1 if anchored else recipe.k
        flops = matrices * invented * 2 * anchors * rows_of.hidden * rounds
        assert isinstance(step.config.runtime, SurgeonRuntime)
        devices = hardware.devices_of(step.config.runtime.threads)
        utilisation = utilisation_of(hardware, self.given.surgeon_utilisation, self.given)
        speed = devices * hardware.peak("float32") * utilisation
        rows = 4.0 * anchors * rows_of.hidden
        pursued = PURSUED_ON_GPU if hardware.accelerator else PURSUED_ON_CPU
        at_once = step.config.runtime.batch_size or (pursued if anchored else BY_TOKENSURGEON)
        batch = 4.0 * at_once * (anchors + rows_of.hidden)
        return replace(
            moved,
            flops=flops,
            hardware=hardware,
            devices=devices,
            per_process=devices,
            memory={"rows": rows, "batch": batch, "peak": rows + batch},
            host_memory=0.0 if hardware.accelerator else rows + batch,
            seconds={**moved.seconds, "start": start_seconds(self.given, hardware), "compute": flops / speed},
            how=(
                f"{matrices} × {figure(invented)} rows to make × 2 × {figure(anchors)} shared rows × {rows_of.hidden} "
                f"× {rounds} = {flops:.3g} FLOP at {speed:.3g}/s",
            ),
        )


def _model_objects(size: float) -> int:
    return MODEL_FILES + num_weight_files(size) + RECORDS
