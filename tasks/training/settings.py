"""What every training stage can be told: its part of the recipe, of the runtime and the checks between the two.

Inert like the stage declarations that use it: no torch. The ZeRO stage stands in the runtime, since sharding the
optimiser changes where numbers live and the order of sums (last bits), never what is learnt; precision stands in the
recipe, since it does change the weights.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.frozen import Frozen
from tasks.planning.hardware import hardware_named
from tasks.runtime.declare import Runtime

Learning = Literal["all", "embedding", "layers"]
"""What learns in a step: everything, the input embedding and the head, or all but these."""


class OptimizerRecipe(Frozen):
    """AdamW and its schedule. Weight decay is applied to matrices only, never to norms and biases."""

    learning_rate: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    """Part of all steps in which the rate rises linearly from 0."""
    schedule: Literal["cosine", "linear", "constant", "warmup_stable_decay"] = "cosine"
    final_fraction: float = Field(0.1, ge=0, le=1)
    """What falls ends at this part of `learning_rate`."""
    decay_fraction: float = Field(0.2, gt=0, le=1)
    """Part of all steps in which `warmup_stable_decay` falls, linearly, at the end."""
    max_grad_norm: float = Field(1.0, gt=0)

    def rate(self, step: int, num_steps: int, embedding_steps: int = 0) -> float:
        """Learning rate of step 0 ≤ step < num_steps.

        After an embedding phase the rate rises anew, linearly and as long as at the beginning, whether or not it was at
        its peak: the other weights, whose moments are empty, would else begin there.
        """
        warmup = math.ceil(self.warmup_fraction * num_steps)
        if embedding_steps and step >= embedding_steps:
            return self._scheduled(step, num_steps, warmup) * min(1.0, (step - embedding_steps + 1) / max(1, warmup))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        return self._scheduled(step, num_steps, warmup)

    def _scheduled(self, step: int, num_steps: int, warmup: int) -> float:
        """The peak until step `warmup`, then what the schedule makes of it."""
        start = warmup
        if self.schedule == "warmup_stable_decay":
            start = max(warmup, num_steps - math.ceil(self.decay_fraction * num_steps))
        progress = max(0.0, (step - start) / max(1, num_steps - start))
        match self.schedule:
            case "constant":
                height = 1.0
            case "cosine":
                height = 0.5 * (1 + math.cos(math.pi * progress))
            case "linear" | "warmup_stable_decay":
                height = 1 - progress
        return self.learning_rate * (self.final_fraction + (1 - self.final_fraction) * height)


class TrainingRecipe(Frozen):
    """How long, on what and how exactly a model is trained. Exactly one of `steps` and `epochs` is given."""

    optimizer: OptimizerRecipe
    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    rows_per_step: int = Field(ge=1)
    """Documents of one optimiser step, over all processes and micro-batches."""
    seed: int = Field(0, ge=0, lt=2**63)
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Of weights and activations; optimiser state, sums of losses and of the head's gradient are float32 in both."""
    embedding_steps: int = Field(0, ge=0)
    """In so many first steps only the embedding and the head learn: for rows that a transplant has just made. Then the
    others join, after a warm-up of their own."""
    frozen_embedding: bool = False
    """Only the layers learn, in all steps: for a branch whose vocabulary is changed back, since layers that have learnt
    over other rows than the reversion brings lose by it. Both ends get neither gradients nor optimiser state."""
    log_every_steps: int = Field(10, ge=1)
    """Distance of the lines in training_log.jsonl; each line is the mean since the one before."""
    heldout_every_steps: int | None = Field(None, ge=1)
    """Distance of the judgements on the held-out split while training; only before and after where not given."""
    max_heldout_rows: int | None = Field(None, ge=1)
    """Judged are at most so many held-out rows of each store, the first ones; all where not given."""

    @model_validator(mode="after")
    def _something_learns(self) -> Self:
        if self.frozen_embedding and self.embedding_steps:
            raise ValueError(
                f"frozen_embedding leaves the embedding as it is, and in the first {self.embedding_steps} steps "
                f"(embedding_steps) only the embedding would learn; leave one of the two out"
            )
        return self

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs, not both and not neither")
        if self.steps is not None:
            self._check_phase(self.steps)
        return self

    def num_steps(self, num_rows: int) -> int:
        """Optimiser steps over a training split of `num_rows` documents.

        `epochs` are read to the end: the last step takes what it lacks from the epoch that would follow.

        Raises:
            ValueError: the embedding phase would be all of the training.
        """
        if self.steps is not None:
            return self.steps
        # What was written is meant, 0.1 and not the binary number next to it.
        steps = math.ceil(Fraction(str(self.epochs)) * num_rows / self.rows_per_step)
        self._check_phase(steps)
        return steps

    def learning(self, step: int) -> Learning:
        """What learns in a step."""
        if self.frozen_embedding:
            return "layers"
        return "embedding" if step < self.embedding_steps else "all"

    def _check_phase(self, num_steps: int) -> None:
        if self.embedding_steps >= num_steps:
            raise ValueError(
                f"embedding_steps is {self.embedding_steps} of {num_steps} steps, so only the embedding would learn; "
                f"make it less, or the training longer"
            )


class TrainingRuntime(Runtime):
    """Batches per device, sharding and checkpoints: free to change between two launches of one training."""

    micro_batch_tokens: int = Field(4096, ge=1)
    """Tokens, padding included, of one forward pass on one process; at least one packed row whatever it says. How many
    passes make a step follows from its documents."""
    pack_tokens: int | None = Field(None, ge=2)
    """Length of a packed row of documents; the longest document of a step where not given."""
    deepspeed_config: str = "configs/deepspeed/zero1.json"
    """Absolute or relative to the checkout. It may say how (ZeRO stage, buckets), not what (rates, batch sizes)."""
    gradient_checkpointing: bool = False
    checkpoint_every_steps: int = Field(200, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    spike_factor: float | None = Field(10.0, gt=1)
    """A loss or gradient norm above so many times the median of the steps before ends the training; None: never."""
    hardware: str | None = None
    """A name in tasks/planning/hardware.yaml, whose peak the FLOPs are set against; found out where not given."""

    @field_validator("hardware")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        try:
            return name if name is None else hardware_named(name).name
        except BadInputError as error:
            raise ValueError(str(error)) from error
